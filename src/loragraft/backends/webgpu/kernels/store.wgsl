// The rows' keys and values into their slots.
struct Params {
  k: u32,
  v: u32,
  key_width: u32,
  value_width: u32,
  key_words: u32,
  value_words: u32,
  halves: u32,
}
@group(1) @binding(0) var<uniform> p: Params;

fn packed(at: u32, word: u32, width: u32) -> u32 {
  if (p.halves == 0u) {
    return bitcast<u32>(arena[at + word]);
  }
  let first = arena[at + word * 2u];
  var second = 0.0;
  if (word * 2u + 1u < width) {
    second = arena[at + word * 2u + 1u];
  }
  return pack2x16float(vec2<f32>(first, second));
}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let words = p.key_words + p.value_words;
  let index = (group.x + group.y * groups.x) * 64u + thread;
  let row = index / words;
  let word = index % words;
  if (row >= batch[ROWS_OF_PASS]) {
    return;
  }
  var value = 0u;
  if (word < p.key_words) {
    value = packed(place(p.k) + row * p.key_width, word, p.key_width);
  } else {
    value = packed(place(p.v) + row * p.value_width, word - p.key_words, p.value_width);
  }
  held[row_fact(SLOT, row) * words + word] = value;
}
