// Weights as they are stored, eight at a time: `octet(row, i)` is weights 8 i to 8 i + 7 of the row that begins at byte
// `row`. The layouts are those of loragraft.quants, which has them in NumPy.
@group(2) @binding(0) var<storage, read> weight: array<u32>;

struct Octet {
  low: vec4<f32>,
  high: vec4<f32>,
}

fn byte_at(address: u32) -> u32 {
  return (weight[address >> 2u] >> ((address & 3u) * 8u)) & 255u;
}

// Four bytes from any address.
fn word_at(address: u32) -> u32 {
  let shift = (address & 3u) * 8u;
  let first = weight[address >> 2u];
  if (shift == 0u) {
    return first;
  }
  return (first >> shift) | (weight[(address >> 2u) + 1u] << (32u - shift));
}

// An F16 number, exact: the builtin may flush subnormal ones to zero.
fn half(bits: u32) -> f32 {
  let sign = (bits & 0x8000u) << 16u;
  let exponent = (bits >> 10u) & 31u;
  let mantissa = bits & 1023u;
  if (exponent == 0u) {
    let tiny = f32(mantissa) * 5.9604644775390625e-8;
    return select(tiny, -tiny, sign != 0u);
  }
  let wide = select(exponent + 112u, 255u, exponent == 31u);
  return bitcast<f32>(sign | (wide << 23u) | (mantissa << 13u));
}

fn half_at(address: u32) -> f32 {
  return half(word_at(address) & 0xffffu);
}

fn bytes(word: u32) -> vec4<u32> {
  return (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
}

fn signed_bytes(word: u32) -> vec4<f32> {
  let w = vec4<i32>(bitcast<i32>(word));
  return vec4<f32>((w << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// E2M1, doubled: 0, 1, 2, 3, 4, 6, 8, 12 and a sign.
fn e2m1(code: u32) -> f32 {
  let magnitude = code & 7u;
  var value = magnitude;
  if (magnitude > 4u) {
    value = select((magnitude - 2u) * 2u, 6u, magnitude == 5u);
    if (magnitude == 7u) {
      value = 12u;
    }
  }
  return select(f32(value), -f32(value), code > 7u);
}

fn e2m1s(codes: vec4<u32>) -> vec4<f32> {
  return vec4<f32>(e2m1(codes.x), e2m1(codes.y), e2m1(codes.z), e2m1(codes.w));
}

// The values of IQ4's codes, four to a word.
fn iq4(code: u32) -> f32 {
  var table = array<u32, 4>(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
  let word = bitcast<i32>(table[code >> 2u]);
  return f32((word << (24u - (code & 3u) * 8u)) >> 24u);
}

fn iq4s(codes: vec4<u32>) -> vec4<f32> {
  return vec4<f32>(iq4(codes.x), iq4(codes.y), iq4(codes.z), iq4(codes.w));
}

// Codes of four bits in blocks of 32, weight j in the low half of byte j, weight j + 16 in the high half of it; the
// bytes begin at `at`. Octet q of the block.
struct Codes {
  low: vec4<u32>,
  high: vec4<u32>,
}

fn nibbles(at: u32, q: u32) -> Codes {
  let begin = at + (q & 1u) * 8u;
  let shift = vec4<u32>((q >> 1u) * 4u);
  let mask = vec4<u32>(15u);
  return Codes((bytes(word_at(begin)) >> shift) & mask, (bytes(word_at(begin + 4u)) >> shift) & mask);
}

// Scale and minimum `i` of the eight in the 12 bytes at `at` (Q4_K, Q5_K).
fn scale_and_minimum(at: u32, i: u32) -> vec2<f32> {
  if (i < 4u) {
    return vec2<f32>(f32(byte_at(at + i) & 63u), f32(byte_at(at + 4u + i) & 63u));
  }
  let a = byte_at(at + i - 4u);
  let b = byte_at(at + i);
  let c = byte_at(at + 4u + i);
  return vec2<f32>(f32((c & 15u) | ((a >> 6u) << 4u)), f32((c >> 4u) | ((b >> 6u) << 4u)));
}
