// Turns pairs of each head by the angles of the row's position. The host computes cosines and sines in float64: a table
// of a pass has `rotary / 2` of each for every row. What is not turned is copied.
struct Params {
  x: u32,
  y: u32,
  heads: u32,
  head_dim: u32,
  rotary: u32,
  adjacent: u32,
  table: u32,
}
@group(1) @binding(0) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let width = p.heads * p.head_dim;
  let index = (group.x + group.y * groups.x) * 64u + thread;
  if (index >= batch[ROWS_OF_PASS] * width) {
    return;
  }
  let i = index % p.head_dim;
  let head = place(p.x) + index - i;
  var value = arena[head + i];
  if (i < p.rotary) {
    let pairs = p.rotary / 2u;
    var pair = i / 2u;
    var first = i - (i & 1u);
    var second = first + 1u;
    if (p.adjacent == 0u) {
      pair = i % pairs;
      first = pair;
      second = pair + pairs;
    }
    if (pair < pairs) {
      let table = batch[ROPES + p.table] + (index / width) * p.rotary;
      let cosine = bitcast<f32>(batch[table + pair]);
      let sine = bitcast<f32>(batch[table + pairs + pair]);
      let a = arena[head + first];
      let b = arena[head + second];
      value = select(a * sine + b * cosine, a * cosine - b * sine, i == first);
    }
  }
  arena[place(p.y) + index] = value;
}
