// S = exp(A dt) S + k u^T, y = S^T q, row by row of a run; a thread takes one column of a head's state. The gated delta
// rule (Yang et al., arXiv:2412.06464): u = beta (v - S^T k). Mamba-2 (Dao and Gu, arXiv:2405.21060): u = dt v, and D v
// is added to y.
struct Params {
  q: u32,
  k: u32,
  v: u32,
  dt: u32,
  beta: u32,       // of the delta rule
  y: u32,
  decay: u32,      // in `constants`
  skip: u32,       // in `constants`; NONE: the delta rule
  heads: u32,
  key_heads: u32,
  key_dim: u32,
  value_dim: u32,
  tiled: u32,
}
@group(1) @binding(0) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let column = group.x * 64u + thread;
  let head = group.y;
  let run = group.z;
  if (column >= p.value_dim) {
    return;
  }
  let key_head = select(head / (p.heads / p.key_heads), head % p.key_heads, p.tiled != 0u);
  let source = run_fact(run, SOURCE);
  let to = (run_fact(run, TARGET) * p.heads + head) * p.key_dim * p.value_dim + column;
  // The first row finds the state where the sequence left it, the others where the one before did.
  var old = select((source * p.heads + head) * p.key_dim * p.value_dim + column, NONE, source == NONE);
  let stop = run_fact(run, STOP);
  for (var row = run_fact(run, FIRST); row < stop; row++) {
    let k = place(p.k) + (row * p.key_heads + key_head) * p.key_dim;
    let q = place(p.q) + (row * p.key_heads + key_head) * p.key_dim;
    let at = (row * p.heads + head) * p.value_dim + column;
    let value = arena[place(p.v) + at];
    let step = arena[place(p.dt) + row * p.heads + head];
    let shrunk = exp(constants[p.decay + head] * step);
    var added = value * step;
    if (p.skip == NONE) {
      var known = 0.0;
      if (old != NONE) {
        for (var i = 0u; i < p.key_dim; i++) {
          known = fma(held[old + i * p.value_dim] * shrunk, arena[k + i], known);
        }
      }
      added = (value - known) * arena[place(p.beta) + row * p.heads + head];
    }
    var seen = 0.0;
    for (var i = 0u; i < p.key_dim; i++) {
      var state = 0.0;
      if (old != NONE) {
        state = held[old + i * p.value_dim] * shrunk;
      }
      state = fma(arena[k + i], added, state);
      held[to + i * p.value_dim] = state;
      seen = fma(state, arena[q + i], seen);
    }
    if (p.skip != NONE) {
      seen = fma(value, constants[p.skip + head], seen);
    }
    arena[place(p.y) + at] = seen;
    old = to;
  }
}
