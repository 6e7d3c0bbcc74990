// Pages that a sequence is about to write in and shares with another, into pages of its own.
struct Params {
  words: u32,
}
@group(1) @binding(0) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let words = p.words * PAGE;
  let word = group.x * 64u + thread;
  let copy = batch[COPIES] + group.y * 2u;
  if (word < words) {
    held[batch[copy + 1u] * words + word] = held[batch[copy] * words + word];
  }
}
