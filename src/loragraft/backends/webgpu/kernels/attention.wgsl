// Causal attention of one head of one row over the pages of its sequence, 64 positions at a time, the softmax carried
// along (Milakov and Gimelshein 2018, arXiv 1805.02867). The positions seen depend on the row's own position alone, and
// so does the order of every sum.
struct Params {
  q: u32,
  y: u32,
  heads: u32,
  kv_heads: u32,
  head_dim: u32,
  value_dim: u32,
  key_words: u32,
  value_words: u32,
  halves: u32,
  window: u32,     // 0: none
  chunk: u32,      // 0: none
  slopes: u32,     // of each head, in `constants`, or NONE
  sinks: u32,      // in `constants`, or NONE
  scale: f32,
  softcap: f32,    // 0: none
}
@group(1) @binding(0) var<uniform> p: Params;

const TILE = 64u;
const PER_LANE = 8u;  // elements of a value that a lane sums: heads of up to 512
const LOWEST = -3.0e38;

var<workgroup> scores: array<f32, TILE>;

fn element(at: u32, index: u32) -> f32 {
  if (p.halves == 0u) {
    return bitcast<f32>(held[at + index]);
  }
  let pair = unpack2x16float(held[at + (index >> 1u)]);
  return select(pair.x, pair.y, (index & 1u) != 0u);
}

fn slot_of(row: u32, position: u32) -> u32 {
  return batch[row_fact(PAGES, row) + position / PAGE] * PAGE + position % PAGE;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let head = group.x;
  let row = group.y + group.z * 32768u;
  let live = row < batch[ROWS_OF_PASS];
  let kv_head = head / (p.heads / p.kv_heads);
  let words = p.key_words + p.value_words;
  var end = 0u;
  var first = 0u;
  if (live) {
    end = row_fact(POSITION, row) + 1u;
    if (p.window != 0u && end > p.window) {
      first = end - p.window;
    }
    if (p.chunk != 0u) {
      first = (end - 1u) / p.chunk * p.chunk;
    }
  }
  let q = place(p.q) + (row * p.heads + head) * p.head_dim;
  var largest = LOWEST;
  var total = 0.0;
  if (p.sinks != NONE) {
    largest = constants[p.sinks + head];
    total = 1.0;
  }
  var mixed: array<f32, PER_LANE>;
  for (var i = 0u; i < PER_LANE; i++) {
    mixed[i] = 0.0;
  }
  for (var start = first; start < end; start += TILE) {
    let count = min(TILE, end - start);
    var score = LOWEST;
    if (lane < count) {
      let key = slot_of(row, start + lane) * words;
      var sum = 0.0;
      for (var i = 0u; i < p.head_dim; i++) {
        sum = fma(arena[q + i], element(key, kv_head * p.head_dim + i), sum);
      }
      score = sum * p.scale;
      if (p.softcap != 0.0) {
        let small = exp(-2.0 * abs(score / p.softcap));
        let bent = p.softcap * (1.0 - small) / (1.0 + small);
        score = select(bent, -bent, score < 0.0);
      }
      if (p.slopes != NONE) {
        score -= constants[p.slopes + head] * f32(end - 1u - start - lane);
      }
    }
    scores[lane] = score;
    workgroupBarrier();
    var top = largest;
    for (var j = 0u; j < count; j++) {
      top = max(top, scores[j]);
    }
    let kept = exp(largest - top);
    largest = top;
    total *= kept;
    for (var i = 0u; i < PER_LANE; i++) {
      mixed[i] *= kept;
    }
    for (var j = 0u; j < count; j++) {
      let power = exp(scores[j] - top);
      total += power;
      let value = slot_of(row, start + j) * words + p.key_words;
      for (var i = 0u; i < PER_LANE; i++) {
        let column = i * 64u + lane;
        if (column < p.value_dim) {
          mixed[i] = fma(power, element(value, kv_head * p.value_dim + column), mixed[i]);
        }
      }
    }
    workgroupBarrier();
  }
  if (!live) {
    return;
  }
  let y = place(p.y) + (row * p.heads + head) * p.value_dim;
  for (var i = 0u; i < PER_LANE; i++) {
    let column = i * 64u + lane;
    if (column < p.value_dim) {
      arena[y + column] = mixed[i] / total;
    }
  }
}
