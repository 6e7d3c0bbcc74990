// The last rows of each run into its state, a thread for each channel. The oldest goes first: where a run takes the place
// of the state that it comes from, no row is overwritten before it is read.
@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let channel = group.x * 64u + thread;
  let run = group.y;
  if (channel >= p.channels) {
    return;
  }
  let kept = p.taps - 1u;
  let rows = run_fact(run, STOP) - run_fact(run, FIRST);
  let target_slot = run_fact(run, TARGET) * kept;
  for (var i = 0u; i < kept; i++) {
    held[(target_slot + i) * p.channels + channel] = tap(run, rows + i, channel);
  }
}
