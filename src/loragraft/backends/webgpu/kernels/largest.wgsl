// Of each row of the output the place of its largest element, the first of equals, and that; NaN is larger than any number.
// A workgroup takes a row.
struct Params {
  width: u32,
}
@group(1) @binding(0) var<uniform> p: Params;

var<workgroup> keys: array<u32, 256>;
var<workgroup> places: array<u32, 256>;

// Unsigned integers in the order of the floats; minus zero is zero.
fn key_of(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return 0xffffffffu;
  }
  if ((bits & 0x7fffffffu) == 0u) {
    return 0x80000000u;
  }
  return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let row = group.x + group.y * groups.x;
  let live = row < batch[OUTPUT_ROWS];
  let first = batch[OUTPUT_AT] + row * p.width;
  var key = 0u;
  var at = NONE;
  if (live) {
    for (var i = lane; i < p.width; i += 256u) {
      let own = key_of(arena[first + i]);
      if (at == NONE || own > key) {
        key = own;
        at = i;
      }
    }
  }
  keys[lane] = key;
  places[lane] = at;
  for (var half = 128u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) {
      let other = lane + half;
      let better = keys[other] > keys[lane] || (keys[other] == keys[lane] && places[other] < places[lane]);
      if (places[other] != NONE && better) {
        keys[lane] = keys[other];
        places[lane] = places[other];
      }
    }
  }
  if (live && lane == 0u) {
    let found = batch[LARGEST_AT] + row * 2u;
    arena[found] = f32(places[0]);
    arena[found + 1u] = arena[first + places[0]];
  }
}
