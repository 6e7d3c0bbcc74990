// arch * (scale * W[id] + sum of gamma B[id] A): rows of a table, by token or by position. A thread makes eight.
struct Params {
  y: u32,
  columns: u32,
  part_first: u32,
  part_rows: u32,
  row_bytes: u32,
  scale: f32,
  arch: f32,
  linear: u32,
  by_position: u32,
}
@group(1) @binding(0) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let octets = (p.columns + 7u) / 8u;
  let index = (group.x + group.y * groups.x) * 64u + thread;
  let row = index / octets;
  let i = index % octets;
  if (row >= batch[ROWS_OF_PASS]) {
    return;
  }
  let id = row_fact(select(TOKEN, POSITION, p.by_position != 0u), row);
  let held = id - p.part_first;
  if (held >= p.part_rows) {
    return;
  }
  let w = octet(held * p.row_bytes, i);
  var values = array<f32, 8>(w.low.x, w.low.y, w.low.z, w.low.w, w.high.x, w.high.y, w.high.z, w.high.w);
  let chosen = row_fact(SET, row);
  for (var j = 0u; j < 8u; j++) {
    let column = i * 8u + j;
    if (column < p.columns) {
      var y = values[j] * p.scale;
      if (chosen != NONE) {
        let entry = batch[TERM_TABLE] + (p.linear * batch[SETS] + chosen) * 3u;
        for (var t = 0u; t < batch[entry + 1u]; t++) {
          let term = batch[entry] + t * 5u;
          let rank = batch[term + 2u];
          var added = 0.0;
          for (var r = 0u; r < rank; r++) {
            added += adapters[batch[term + 1u] + id * rank + r] * adapters[batch[term] + r * p.columns + column];
          }
          y += bitcast<f32>(batch[term + 3u]) * added;
        }
      }
      arena[place(p.y) + row * p.columns + column] = y * p.arch;
    }
  }
}
