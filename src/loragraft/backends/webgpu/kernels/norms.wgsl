// RMS norm over each group of `size` elements, or layer norm. A workgroup takes one group; 64 lanes share its sums.
struct Params {
  x: u32,
  y: u32,
  size: u32,
  groups: u32,     // of a row
  wanted: u32,
  centred: u32,    // layer norm
  weight: u32,     // in `constants`, or NONE
  weights: u32,    // groups have so many of them, in turn
  bias: u32,
  eps: f32,
}
@group(1) @binding(0) var<uniform> p: Params;

var<workgroup> sums: array<f32, 64>;
var<workgroup> squares: array<f32, 64>;

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
  if (live && p.centred != 0u) {
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
  workgroupBarrier();
  if (!live) {
    return;
  }
  var total = 0.0;
  for (var i = 0u; i < 64u; i++) {
    total += squares[i];
  }
  let root = sqrt(total / f32(p.size) + p.eps);
  let y = place(p.y) + index * p.size;
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
