// Everything that makes an element of the elements at its place. `op` picks what (backends/webgpu/dispatches.py).
struct Params {
  op: u32,
  x: u32,
  other: u32,
  y: u32,
  width: u32,    // of a row of y
  wanted: u32,
  part: u32,     // of `broadcast`, `split`, `concat`, `channel_scale`: elements of y that belong together
  stride: u32,   // of `split`: from one part of x to the next
  start: u32,    // of `split`: the first of a part of x; of `concat`: elements of a part that x has; of `time_step`: b;
                 // of `channel_scale`: the weight
  a: f32,
  b: f32,
  c: f32,
  d: f32,
}
@group(1) @binding(0) var<uniform> p: Params;

const ADD = 0u;
const MUL = 1u;
const BROADCAST = 2u;
const SILU_MUL = 3u;
const SILU = 4u;
const SIGMOID = 5u;
const GELU_TANH = 6u;
const GELU_ERF = 7u;
const RELU = 8u;
const SOFT_CAP = 9u;
const SOFTPLUS = 10u;
const CLAMP = 11u;
const AFFINE = 12u;
const SPLIT = 13u;
const LAST = 14u;
const CONCAT = 15u;
const COUNT = 16u;
const XIELU = 17u;
const POSITION_SCALE = 18u;
const TIME_STEP = 19u;
const CHANNEL_SCALE = 20u;

fn sigmoid(x: f32) -> f32 {
  let small = exp(-abs(x));
  return select(small, 1.0, x >= 0.0) / (1.0 + small);
}

fn tanh_of(x: f32) -> f32 {
  let small = exp(-2.0 * abs(x));
  let value = (1.0 - small) / (1.0 + small);
  return select(value, -value, x < 0.0);
}

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: within 1.5e-7.
fn erf_of(x: f32) -> f32 {
  let size = abs(x);
  let t = 1.0 / (1.0 + 0.3275911 * size);
  let series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  let value = 1.0 - series * exp(-size * size);
  return select(value, -value, x < 0.0);
}

fn expm1_of(x: f32) -> f32 {
  return select(exp(x) - 1.0, x * (1.0 + x * (0.5 + x * 0.16666667)), abs(x) < 0.01);
}

// 1 + slope * log(1 + whole lengths before the position); the division may be off by a bit, products of such are not.
fn position_factor(row: u32) -> f32 {
  let position = f32(row_fact(POSITION, source_row(row, p.wanted))) + p.b;
  var steps = floor(position / p.a);
  steps += select(0.0, 1.0, (steps + 1.0) * p.a <= position);
  steps -= select(0.0, 1.0, steps * p.a > position);
  return 1.0 + p.c * log(1.0 + steps);
}

// log(1 + e) for e from 0 to 1; near 0 the sum would lose what e is.
fn log1p_of(e: f32) -> f32 {
  let series = e * (1.0 - e * (0.5 - e * (0.33333333 - e * (0.25 - e * 0.2))));
  return select(log(1.0 + e), series, e < 0.05);
}

fn softplus(x: f32) -> f32 {
  return max(x, 0.0) + log1p_of(exp(-abs(x)));
}

fn unary(x: f32) -> f32 {
  switch p.op {
    case SILU: { return x * sigmoid(x); }
    case SIGMOID: { return sigmoid(x); }
    case GELU_TANH: { return x * sigmoid(2.0 * 0.7978845608 * (x + 0.044715 * x * x * x)); }
    case GELU_ERF: { return 0.5 * x * (1.0 + erf_of(x * 0.7071067811865476)); }
    case RELU: { return select(x, 0.0, x < 0.0); }
    case SOFT_CAP: { return p.a * tanh_of(x / p.a); }
    case SOFTPLUS: { return softplus(x); }
    case CLAMP: { return select(select(x, p.b, x > p.b), p.a, x < p.a); }
    case AFFINE: { return x * p.a + p.b; }
    case XIELU: {  // alpha_p, alpha_n, beta, eps
      return select((expm1_of(min(x, p.d)) - x) * p.b, p.a * x * x, x > 0.0) + p.c * x;
    }
    default: { return x; }
  }
}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let index = (group.x + group.y * groups.x) * 64u + thread;
  if (index >= rows_of(p.wanted) * p.width) {
    return;
  }
  let x = place(p.x);
  let other = place(p.other);
  var value = 0.0;
  switch p.op {
    case ADD: { value = arena[x + index] + arena[other + index]; }
    case MUL: { value = arena[x + index] * arena[other + index]; }
    case BROADCAST: { value = arena[x + index] * arena[other + index / p.part]; }
    case SILU_MUL: {
      let gate = arena[x + index];
      value = gate * sigmoid(gate) * arena[other + index];
    }
    case SPLIT: { value = arena[x + index / p.part * p.stride + p.start + index % p.part]; }
    case CONCAT: {
      let at = index % p.part;
      if (at < p.start) {
        value = arena[x + index / p.part * p.start + at];
      } else {
        value = arena[other + index / p.part * (p.part - p.start) + at - p.start];
      }
    }
    case TIME_STEP: {  // low, high
      value = clamp(softplus(arena[x + index] + constants[p.start + index % p.width]), p.a, p.b);
    }
    case CHANNEL_SCALE: { value = arena[x + index] * constants[p.start + index % p.part]; }
    case COUNT: { value = f32(index % p.width); }
    case POSITION_SCALE: { value = arena[x + index] * position_factor(index / p.width); }
    case LAST: { value = arena[x + source_row(index / p.width, 1u) * p.width + index % p.width]; }
    default: { value = unary(arena[x + index]); }
  }
  arena[place(p.y) + index] = value;
}
