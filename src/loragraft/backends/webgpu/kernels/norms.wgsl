// What is made of a group of `size` elements and its mean square: RMS norm, layer norm, what lies far above the mean
// (`gaussian_top_k`), the size of another value (`match_rms`). A workgroup takes one group; 64 lanes share its sums.
struct Params {
  x: u32,
  y: u32,
  size: u32,
  groups: u32,     // of a row
  wanted: u32,
  kind: u32,       // one of those below
  weight: u32,     // in `constants`, or NONE
  weights: u32,    // groups have so many of them, in turn
  bias: u32,
  other: u32,      // of `match_rms`: the value whose rows give the size, and how long they are
  other_size: u32,
  eps: f32,        // of `gaussian_top_k`: deviations; of `match_rms`: the least mean square
}
@group(1) @binding(0) var<uniform> p: Params;

const RMS = 0u;
const CENTRED = 1u;
const TOP = 2u;
const MATCHED = 3u;

var<workgroup> sums: array<f32, 64>;
var<workgroup> squares: array<f32, 64>;
var<workgroup> others: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = group.x + group.y * groups.x;
  let live = index < rows_of(p.wanted) * p.groups;
  let x = place(p.x) + index * p.size;
  var sum = 0.0;
  if (live && (p.kind == CENTRED || p.kind == TOP)) {
    for (var i = lane; i < p.size; i += 64u) {
      sum += arena[x + i];
    }
  }
  sums[lane] = sum;
  workgroupBarrier();
  var mean = 0.0;
  for (var i = 0u; i < 64u; i++) {
    mean += sums[i];
  }
  mean /= f32(p.size);
  var square = 0.0;
  if (live) {
    for (var i = lane; i < p.size; i += 64u) {
      let value = arena[x + i] - mean;
      square = fma(value, value, square);
    }
  }
  squares[lane] = square;
  var size = 0.0;
  if (live && p.kind == MATCHED) {
    let row = place(p.other) + index / p.groups * p.other_size;
    for (var i = lane; i < p.other_size; i += 64u) {
      size = fma(arena[row + i], arena[row + i], size);
    }
  }
  others[lane] = size;
  workgroupBarrier();
  if (!live) {
    return;
  }
  var total = 0.0;
  for (var i = 0u; i < 64u; i++) {
    total += squares[i];
  }
  let y = place(p.y) + index * p.size;
  let variance = total / f32(p.size);
  if (p.kind == TOP) {
    let cut = p.eps * sqrt(variance);
    for (var i = lane; i < p.size; i += 64u) {
      arena[y + i] = max(arena[x + i] - mean - cut, 0.0);
    }
    return;
  }
  if (p.kind == MATCHED) {
    var wanted = 0.0;
    for (var i = 0u; i < 64u; i++) {
      wanted += others[i];
    }
    let factor = sqrt(wanted / f32(p.other_size)) / sqrt(max(variance, p.eps));
    for (var i = lane; i < p.size; i += 64u) {
      arena[y + i] = arena[x + i] * factor;
    }
    return;
  }
  let root = sqrt(variance + p.eps);
  for (var i = lane; i < p.size; i += 64u) {
    var value = (arena[x + i] - mean) / root;
    if (p.weight != NONE) {
      value *= constants[p.weight + index % p.weights * p.size + i];
    }
    if (p.bias != NONE) {
      value += constants[p.bias + i];
    }
    arena[y + i] = value;
  }
}
