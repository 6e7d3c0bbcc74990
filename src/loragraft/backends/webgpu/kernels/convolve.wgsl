// A short convolution, a thread for each channel of a row.
@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let index = (group.x + group.y * groups.x) * 64u + thread;
  let row = index / p.channels;
  let channel = index % p.channels;
  if (row >= batch[ROWS_OF_PASS]) {
    return;
  }
  let run = row_fact(RUN, row);
  let first = row - run_fact(run, FIRST);
  var sum = 0.0;
  for (var j = 0u; j < p.taps; j++) {
    sum = fma(tap(run, first + j, channel), constants[p.weight + channel * p.taps + j], sum);
  }
  if (p.bias != NONE) {
    sum += constants[p.bias + channel];
  }
  arena[place(p.y) + index] = sum;
}
