// Rows of a short convolution; those before a run's first are what its state keeps, oldest first.
struct Params {
  x: u32,
  y: u32,
  channels: u32,
  taps: u32,
  weight: u32,  // in `constants`
  bias: u32,    // or NONE
}
@group(1) @binding(0) var<uniform> p: Params;

// Row `row` of the run, counted from its first, moved up by the rows that are kept.
fn tap(run: u32, row: u32, channel: u32) -> f32 {
  let kept = p.taps - 1u;
  if (row >= kept) {
    return arena[place(p.x) + (run_fact(run, FIRST) + row - kept) * p.channels + channel];
  }
  let source = run_fact(run, SOURCE);
  if (source == NONE) {
    return 0.0;
  }
  return held[(source * kept + row) * p.channels + channel];
}
