// y = arch * (rows * (scale * (W x) + sum of gamma B h) + bias), h = A x: a product and its whole epilogue, in this
// order. A workgroup makes 4 outputs of ROWS rows; 32 lanes share a sum, each taking every 32nd octet, and one thread
// adds what the lanes have, in their order: the same for any number of rows. Lines that end in an @ are repeated for
// every row @r below ROWS and both outputs @c of a lane: an array of sums would lie in memory.
struct Params {
  x: u32,
  y: u32,
  columns: u32,
  outputs: u32,      // of a row, of all parts of the weight
  part_first: u32,   // the rows of W (of all experts, one after the other) that this buffer holds
  part_rows: u32,
  row_bytes: u32,
  wanted: u32,
  scale: u32,        // in `constants`, or NONE; of each expert
  bias: u32,
  arch: f32,
  linear: u32,       // its number in the table of adapters
  used: u32,         // experts used; 0: a dense layer
  ids: u32,
  each: u32,         // whether each expert has an x of its own
}
@group(1) @binding(0) var<uniform> p: Params;

const LANES = 32u;
const OUTPUTS = 4u;

var<workgroup> sums: array<f32, OUTPUTS * ROWS * LANES>;

// x[at .. at + 4], zero from `left` on
fn input(at: u32, left: u32) -> vec4<f32> {
  if (left >= 4u) {
    return vec4<f32>(arena[at], arena[at + 1u], arena[at + 2u], arena[at + 3u]);
  }
  var x = vec4<f32>(0.0);
  if (left > 0u) { x.x = arena[at]; }
  if (left > 1u) { x.y = arena[at + 1u]; }
  if (left > 2u) { x.z = arena[at + 2u]; }
  return x;
}

// Which of the rows of x an output's row reads.
fn input_row(row: u32, slots: u32) -> u32 {
  return select(row / slots, row, p.each != 0u || p.used == 0u);
}

// Weights of a row that ends within the octet: what follows belongs to the next row.
fn cut(w: Octet, left: u32) -> Octet {
  if (left >= 8u) {
    return w;
  }
  let place = vec4<u32>(0u, 1u, 2u, 3u);
  return Octet(
    select(vec4<f32>(0.0), w.low, place < vec4<u32>(left)),
    select(vec4<f32>(0.0), w.high, place + 4u < vec4<u32>(left)),
  );
}

fn along(w: Octet, low: vec4<f32>, high: vec4<f32>, before: f32) -> f32 {
  var s = fma(w.low.x, low.x, before);
  s = fma(w.low.y, low.y, s);
  s = fma(w.low.z, low.z, s);
  s = fma(w.low.w, low.w, s);
  s = fma(w.high.x, high.x, s);
  s = fma(w.high.y, high.y, s);
  s = fma(w.high.z, high.z, s);
  return fma(w.high.w, high.w, s);
}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let lane = thread & (LANES - 1u);
  let side = thread / LANES;
  let slots = max(p.used, 1u);
  let rows = rows_of(p.wanted) * slots;
  let first_row = group.z * ROWS;
  // Of a dense layer, the part's own; any expert's rows may lie in any part.
  let first_output = (group.x + group.y * groups.x) * OUTPUTS + select(0u, p.part_first, p.used == 0u);
  let x_at = place(p.x);
  var expert = 0u;
  if (p.used != 0u) {
    expert = u32(arena[place(p.ids) + first_row]);
  }
  let octets = (p.columns + 7u) / 8u;
  // Where the inputs of every row begin, and the weights of every output: past the last, the last one's again.
  let x_@r = x_at + input_row(min(first_row + @ru, rows - 1u), slots) * p.columns; //@
  let w_@c = min(expert * p.outputs + first_output + side * 2u + @cu - p.part_first, p.part_rows - 1u) * p.row_bytes; //@
  var sum_@c_@r = 0.0; //@
  for (var i = lane; i < octets; i += LANES) {
    let left = p.columns - i * 8u;
    let low_@r = input(x_@r + i * 8u, left); //@
    let high_@r = input(x_@r + i * 8u + 4u, max(left, 4u) - 4u); //@
    let octet_@c = cut(octet(w_@c, i), left); //@
    sum_@c_@r = along(octet_@c, low_@r, high_@r, sum_@c_@r); //@
  }
  sums[((side * 2u + @cu) * ROWS + @ru) * LANES + lane] = sum_@c_@r; //@
  workgroupBarrier();

  if (thread >= OUTPUTS * ROWS) {
    return;
  }
  let output = first_output + thread / ROWS;
  let row = first_row + thread % ROWS;
  let flat = expert * p.outputs + output;
  if (output >= p.outputs || row >= rows || flat - p.part_first >= p.part_rows) {
    return;
  }
  var y = 0.0;
  for (var i = 0u; i < LANES; i++) {
    y += sums[thread * LANES + i];
  }
  if (p.scale != NONE) {
    y *= constants[p.scale + expert];
  }
  let chosen = row_fact(SET, source_row(row / slots, p.wanted));
  if (chosen != NONE) {
    let entry = batch[TERM_TABLE] + (p.linear * batch[SETS] + chosen) * 3u;
    let count = batch[entry + 1u];
    for (var t = 0u; t < count; t++) {
      let term = batch[entry] + t * 5u;
      let rank = batch[term + 2u];
      let b = batch[term + 1u] + flat * rank;
      let h = batch[SCRATCH_AT] + row * batch[SCRATCH_STRIDE] + batch[term + 4u];
      var added = 0.0;
      for (var i = 0u; i < rank; i++) {
        added += adapters[b + i] * arena[h + i];
      }
      y += bitcast<f32>(batch[term + 3u]) * added;
    }
    let lengths = batch[entry + 2u];
    if (lengths != NONE) {
      y *= adapters[lengths + flat];
    }
  }
  if (p.bias != NONE) {
    y += constants[p.bias + flat];
  }
  arena[place(p.y) + row * p.outputs + output] = y * p.arch;
}
