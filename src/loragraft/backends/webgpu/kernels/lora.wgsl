// h = A x of every row under its own adapters, into the scratch that linear.wgsl reads. A workgroup makes one number.
struct Params {
  x: u32,
  columns: u32,
  wanted: u32,
  linear: u32,
  used: u32,
  ids: u32,
  each: u32,
}
@group(1) @binding(0) var<uniform> p: Params;

var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let slots = max(p.used, 1u);
  let row = group.y + group.z * 32768u;
  let number = group.x;
  let live = row < rows_of(p.wanted) * slots;
  var a = NONE;
  if (live) {
    let chosen = row_fact(SET, source_row(row / slots, p.wanted));
    if (chosen != NONE) {
      let entry = batch[TERM_TABLE] + (p.linear * batch[SETS] + chosen) * 3u;
      let count = batch[entry + 1u];
      for (var t = 0u; t < count; t++) {
        let term = batch[entry] + t * 5u;
        let rank = batch[term + 2u];
        let first = batch[term + 4u];
        if (number >= first && number < first + rank) {
          var expert = 0u;
          if (p.used != 0u) {
            expert = u32(arena[place(p.ids) + row]);
          }
          a = batch[term] + (expert * rank + number - first) * p.columns;
        }
      }
    }
  }
  var sum = 0.0;
  if (a != NONE) {
    let x = place(p.x) + select(row / slots, row, p.each != 0u || p.used == 0u) * p.columns;
    for (var i = lane; i < p.columns; i += 64u) {
      sum = fma(adapters[a + i], arena[x + i], sum);
    }
  }
  sums[lane] = sum;
  workgroupBarrier();
  if (lane == 0u && a != NONE) {
    var h = 0.0;
    for (var i = 0u; i < 64u; i++) {
      h += sums[i];
    }
    arena[batch[SCRATCH_AT] + row * batch[SCRATCH_STRIDE] + number] = h;
  }
}
