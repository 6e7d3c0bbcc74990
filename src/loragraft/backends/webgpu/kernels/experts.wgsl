// Which experts a row uses, how much each counts, and their sum. `op`: 0 top_k, 1 route, 2 experts_sum. The first two
// take a thread for a row, the last one for an element.
struct Params {
  op: u32,
  x: u32,          // logits; what the experts made
  other: u32,      // ids; weights
  y: u32,
  experts: u32,
  used: u32,
  width: u32,      // of a row of the sum
  wanted: u32,
  softmax: u32,
  normalize: u32,
  scale: f32,
}
@group(1) @binding(0) var<uniform> p: Params;

// The largest first, equals in their order: each pick is the best after the one before.
fn top_k(row: u32) {
  let x = place(p.x) + row * p.experts;
  var last = 0u;
  for (var j = 0u; j < p.used; j++) {
    var best = NONE;
    for (var e = 0u; e < p.experts; e++) {
      let value = arena[x + e];
      var free = j == 0u;
      if (!free) {
        free = value < arena[x + last] || (value == arena[x + last] && e > last);
      }
      if (free && (best == NONE || value > arena[x + min(best, p.experts - 1u)])) {
        best = e;
      }
    }
    last = min(best, p.experts - 1u);
    arena[place(p.y) + row * p.used + j] = f32(last);
  }
}

fn route(row: u32) {
  let x = place(p.x) + row * p.experts;
  let ids = place(p.other) + row * p.used;
  let y = place(p.y) + row * p.used;
  var largest = arena[x];
  var total = 0.0;
  if (p.softmax != 0u) {
    for (var e = 1u; e < p.experts; e++) {
      largest = max(largest, arena[x + e]);
    }
    for (var e = 0u; e < p.experts; e++) {
      total += exp(arena[x + e] - largest);
    }
  }
  var sum = 0.0;
  for (var j = 0u; j < p.used; j++) {
    let logit = arena[x + u32(arena[ids + j])];
    var gate = 0.0;
    if (p.softmax != 0u) {
      gate = exp(logit - largest) / total;
    } else {
      let small = exp(-abs(logit));
      gate = select(small, 1.0, logit >= 0.0) / (1.0 + small);
    }
    sum += gate;
    arena[y + j] = gate;
  }
  for (var j = 0u; j < p.used; j++) {
    var gate = arena[y + j];
    if (p.normalize != 0u) {
      gate /= sum;
    }
    arena[y + j] = gate * p.scale;
  }
}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let index = (group.x + group.y * groups.x) * 64u + thread;
  let rows = rows_of(p.wanted);
  if (p.op == 2u) {
    if (index >= rows * p.width) {
      return;
    }
    let row = index / p.width;
    var sum = 0.0;
    for (var j = 0u; j < p.used; j++) {
      let weight = arena[place(p.other) + row * p.used + j];
      sum += arena[place(p.x) + (row * p.used + j) * p.width + index % p.width] * weight;
    }
    arena[place(p.y) + index] = sum;
    return;
  }
  if (index >= rows) {
    return;
  }
  if (p.op == 0u) {
    top_k(index);
  } else {
    route(index);
  }
}
