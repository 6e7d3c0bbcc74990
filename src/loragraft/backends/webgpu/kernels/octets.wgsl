// `octet` of every type; backends/webgpu/shaders.py takes the one between the marks of a type.
//: F32
fn octet(row: u32, i: u32) -> Octet {
  let at = (row >> 2u) + i * 8u;
  return Octet(
    vec4<f32>(bitcast<f32>(weight[at]), bitcast<f32>(weight[at + 1u]), bitcast<f32>(weight[at + 2u]), bitcast<f32>(weight[at + 3u])),
    vec4<f32>(bitcast<f32>(weight[at + 4u]), bitcast<f32>(weight[at + 5u]), bitcast<f32>(weight[at + 6u]), bitcast<f32>(weight[at + 7u])),
  );
}
//: F16
fn halves(word: u32) -> vec2<f32> {
  return vec2<f32>(half(word & 0xffffu), half(word >> 16u));
}

fn octet(row: u32, i: u32) -> Octet {
  let at = row + i * 16u;
  return Octet(
    vec4<f32>(halves(word_at(at)), halves(word_at(at + 4u))),
    vec4<f32>(halves(word_at(at + 8u)), halves(word_at(at + 12u))),
  );
}
//: BF16
fn halves(word: u32) -> vec2<f32> {
  return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

fn octet(row: u32, i: u32) -> Octet {
  let at = row + i * 16u;
  return Octet(
    vec4<f32>(halves(word_at(at)), halves(word_at(at + 4u))),
    vec4<f32>(halves(word_at(at + 8u)), halves(word_at(at + 12u))),
  );
}
//: Q8_0
fn octet(row: u32, i: u32) -> Octet {
  let block = row + (i >> 2u) * 34u;
  let d = half_at(block);
  let at = block + 2u + (i & 3u) * 8u;
  return Octet(signed_bytes(word_at(at)) * d, signed_bytes(word_at(at + 4u)) * d);
}
//: Q4_0
fn octet(row: u32, i: u32) -> Octet {
  let block = row + (i >> 2u) * 18u;
  let d = half_at(block);
  let codes = nibbles(block + 2u, i & 3u);
  return Octet((vec4<f32>(codes.low) - 8.0) * d, (vec4<f32>(codes.high) - 8.0) * d);
}
//: Q4_K
fn octet(row: u32, i: u32) -> Octet {
  let block = row + (i >> 5u) * 144u;
  let part = (i & 31u) >> 2u;
  let factors = scale_and_minimum(block + 4u, part);
  let d = half_at(block) * factors.x;
  let low = half_at(block + 2u) * factors.y;
  let at = block + 16u + (part >> 1u) * 32u + (i & 3u) * 8u;
  let shift = vec4<u32>((part & 1u) * 4u);
  let first = (bytes(word_at(at)) >> shift) & vec4<u32>(15u);
  let second = (bytes(word_at(at + 4u)) >> shift) & vec4<u32>(15u);
  return Octet(vec4<f32>(first) * d - low, vec4<f32>(second) * d - low);
}
//: Q5_K
fn octet(row: u32, i: u32) -> Octet {
  let block = row + (i >> 5u) * 176u;
  let part = (i & 31u) >> 2u;
  let q = i & 3u;
  let factors = scale_and_minimum(block + 4u, part);
  let d = half_at(block) * factors.x;
  let low = half_at(block + 2u) * factors.y;
  let at = block + 48u + (part >> 1u) * 32u + q * 8u;
  let top = block + 16u + q * 8u;
  let shift = vec4<u32>((part & 1u) * 4u);
  let bit = vec4<u32>(part);
  let one = vec4<u32>(1u);
  let first = ((bytes(word_at(at)) >> shift) & vec4<u32>(15u)) | (((bytes(word_at(top)) >> bit) & one) * 16u);
  let second = ((bytes(word_at(at + 4u)) >> shift) & vec4<u32>(15u)) | (((bytes(word_at(top + 4u)) >> bit) & one) * 16u);
  return Octet(vec4<f32>(first) * d - low, vec4<f32>(second) * d - low);
}
//: Q6_K
fn octet(row: u32, i: u32) -> Octet {
  let block = row + (i >> 5u) * 210u;
  let j = i & 31u;
  let half_block = j >> 4u;
  let quarter = (j >> 2u) & 3u;
  let q = j & 3u;
  let scale = byte_at(block + 192u + (j >> 1u));
  let d = half_at(block + 208u) * f32(bitcast<i32>(scale << 24u) >> 24u);
  let at = block + half_block * 64u + (quarter & 1u) * 32u + q * 8u;
  let top = block + 128u + half_block * 32u + q * 8u;
  let shift = vec4<u32>((quarter >> 1u) * 4u);
  let bits = vec4<u32>(quarter * 2u);
  let mask = vec4<u32>(15u);
  let two = vec4<u32>(3u);
  let first = ((bytes(word_at(at)) >> shift) & mask) | (((bytes(word_at(top)) >> bits) & two) * 16u);
  let second = ((bytes(word_at(at + 4u)) >> shift) & mask) | (((bytes(word_at(top + 4u)) >> bits) & two) * 16u);
  return Octet((vec4<f32>(first) - 32.0) * d, (vec4<f32>(second) - 32.0) * d);
}
//: IQ4_NL
fn octet(row: u32, i: u32) -> Octet {
  let block = row + (i >> 2u) * 18u;
  let d = half_at(block);
  let codes = nibbles(block + 2u, i & 3u);
  return Octet(iq4s(codes.low) * d, iq4s(codes.high) * d);
}
//: IQ4_XS
fn octet(row: u32, i: u32) -> Octet {
  let block = row + (i >> 5u) * 136u;
  let part = (i & 31u) >> 2u;
  let high = (word_at(block + 2u) >> (part * 2u)) & 3u;
  let low = (byte_at(block + 4u + (part >> 1u)) >> ((part & 1u) * 4u)) & 15u;
  let d = half_at(block) * (f32(low | (high << 4u)) - 32.0);
  let codes = nibbles(block + 8u + part * 16u, i & 3u);
  return Octet(iq4s(codes.low) * d, iq4s(codes.high) * d);
}
//: MXFP4
// Half the power of two that the byte means, 2^(e - 128); 0 and 1 are subnormal.
fn e8m0(code: u32) -> f32 {
  return bitcast<f32>(select((code - 1u) << 23u, 0x00200000u << code, code < 2u));
}

fn octet(row: u32, i: u32) -> Octet {
  let block = row + (i >> 2u) * 17u;
  let d = e8m0(byte_at(block));
  let codes = nibbles(block + 1u, i & 3u);
  return Octet(e2m1s(codes.low) * d, e2m1s(codes.high) * d);
}
//: NVFP4
// Half the E4M3 number that the byte means: its sign ignored, NaN 0.
fn e4m3(code: u32) -> f32 {
  let bits = code & 127u;
  let exponent = bits >> 3u;
  let mantissa = f32(bits & 7u);
  if (exponent == 0u) {
    return mantissa * 0.0009765625;
  }
  let value = (1.0 + mantissa * 0.125) * bitcast<f32>((exponent + 119u) << 23u);
  return select(value, 0.0, bits == 127u);
}

fn octet(row: u32, i: u32) -> Octet {
  let block = row + (i >> 3u) * 36u;
  let part = (i & 7u) >> 1u;
  let d = e4m3(byte_at(block + part));
  let at = block + 4u + part * 8u;
  let shift = vec4<u32>((i & 1u) * 4u);
  let mask = vec4<u32>(15u);
  let first = (bytes(word_at(at)) >> shift) & mask;
  let second = (bytes(word_at(at + 4u)) >> shift) & mask;
  return Octet(e2m1s(first) * d, e2m1s(second) * d);
}
