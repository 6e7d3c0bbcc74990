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
  gating: u32,     // 0 none, 1 softmax, 2 sigmoid, 3 sparse_mixer
  margin: f32,     // of sparse_mixer
  normalize: u32,
  bias: u32,       // of top_k, in `constants`, or NONE
  groups: u32,     // of top_k: experts come from the best `groups_used` of so many groups,
  groups_used: u32,
  group_best: u32, // each as good as its best so many experts together
  scale: f32,
}
@group(1) @binding(0) var<uniform> p: Params;

// What the gates of a row are made with.
struct Logits {
  x: u32,
  largest: f32,
  total: f32,
}

fn logits_of(row: u32) -> Logits {
  let x = place(p.x) + row * p.experts;
  var largest = arena[x];
  var total = 0.0;
  if (p.gating == 1u) {
    for (var e = 1u; e < p.experts; e++) {
      largest = max(largest, arena[x + e]);
    }
    for (var e = 0u; e < p.experts; e++) {
      total += exp(arena[x + e] - largest);
    }
  }
  return Logits(x, largest, total);
}

fn gate_of(logits: Logits, e: u32) -> f32 {
  let logit = arena[logits.x + e];
  if (p.gating == 0u) {
    return logit;
  }
  if (p.gating == 1u) {
    return exp(logit - logits.largest) / logits.total;
  }
  let small = exp(-abs(logit));
  return select(small, 1.0, logit >= 0.0) / (1.0 + small);
}

fn score_of(logits: Logits, e: u32) -> f32 {
  let gate = gate_of(logits, e);
  if (p.bias == NONE) {
    return gate;
  }
  return gate + constants[p.bias + e];
}

struct Pick {
  expert: u32,
  score: f32,
}

// The best of the experts [first, stop) in the groups `among` that comes after `last`; equals in their order.
fn next(logits: Logits, first: u32, stop: u32, among: u32, last: Pick) -> Pick {
  let size = p.experts / p.groups;
  var best = Pick(NONE, 0.0);
  for (var e = first; e < stop; e++) {
    if (p.groups > 1u && ((among >> (e / size)) & 1u) == 0u) {
      continue;
    }
    let score = score_of(logits, e);
    let after = last.expert == NONE || score < last.score || (score == last.score && e > last.expert);
    if (after && (best.expert == NONE || score > best.score)) {
      best = Pick(e, score);
    }
  }
  return best;
}

// The groups that experts may come from, a bit for each.
fn groups_of(logits: Logits) -> u32 {
  let size = p.experts / p.groups;
  var scores: array<f32, 32>;
  for (var g = 0u; g < p.groups; g++) {
    var last = Pick(NONE, 0.0);
    var sum = 0.0;
    for (var j = 0u; j < p.group_best; j++) {
      last = next(logits, g * size, (g + 1u) * size, 0xffffffffu, last);
      sum += last.score;
    }
    scores[g] = sum;
  }
  var chosen = 0u;
  for (var j = 0u; j < p.groups_used; j++) {
    var best = NONE;
    for (var g = 0u; g < p.groups; g++) {
      if (((chosen >> g) & 1u) == 0u && (best == NONE || scores[g] > scores[min(best, 31u)])) {
        best = g;
      }
    }
    chosen |= 1u << min(best, 31u);
  }
  return chosen;
}

fn top_k(row: u32) {
  let logits = logits_of(row);
  var among = 0xffffffffu;
  if (p.groups > 1u) {
    among = groups_of(logits);
  }
  var last = Pick(NONE, 0.0);
  for (var j = 0u; j < p.used; j++) {
    last = next(logits, 0u, p.experts, among, last);
    arena[place(p.y) + row * p.used + j] = f32(min(last.expert, p.experts - 1u));
  }
}

// Of sparse_mixer: number j's share of those that were not chosen before it and are near it.
fn share_of(logits: Logits, ids: u32, j: u32) -> f32 {
  let own = arena[logits.x + u32(arena[ids + j])];
  var total = 0.0;
  for (var e = 0u; e < p.experts; e++) {
    var before = false;
    for (var i = 0u; i < j; i++) {
      before = before || u32(arena[ids + i]) == e;
    }
    let logit = arena[logits.x + e];
    let far = own - logit > p.margin * max(abs(logit), own);
    total += select(exp(logit - own), 0.0, before || far);
  }
  return 1.0 / total;
}

fn route(row: u32) {
  let logits = logits_of(row);
  let ids = place(p.other) + row * p.used;
  let y = place(p.y) + row * p.used;
  var sum = 0.0;
  for (var j = 0u; j < p.used; j++) {
    var gate = 0.0;
    if (p.gating == 3u) {
      gate = share_of(logits, ids, j);
    } else {
      gate = gate_of(logits, u32(arena[ids + j]));
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
