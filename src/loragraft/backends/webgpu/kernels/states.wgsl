// States of one recurrent layer, in slots. A run is the rows of one sequence, which follow one another.
@group(2) @binding(0) var<storage, read_write> held: array<f32>;

const FIRST = 0u;   // its first row,
const STOP = 1u;    // the row behind its last,
const SOURCE = 2u;  // the slot that its state comes from, NONE: zeros,
const TARGET = 3u;  // the slot that it goes to, which may be the same

fn run_fact(run: u32, fact: u32) -> u32 {
  return batch[batch[RUNS] + run * 4u + fact];
}
