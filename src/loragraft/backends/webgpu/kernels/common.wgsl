// What every kernel sees. A value of the graph lies in `arena`, row after row, at its offset times the rows of the pass;
// `batch` says what the rows are; `adapters` holds A, B and row scales of every adapter; `constants` the small tensors.
@group(0) @binding(0) var<storage, read_write> arena: array<f32>;
@group(0) @binding(1) var<storage, read> batch: array<u32>;
@group(0) @binding(2) var<storage, read> adapters: array<f32>;
@group(0) @binding(3) var<storage, read> constants: array<f32>;

// The head of `batch` (backends/webgpu/passes.py writes it).
const ROWS_OF_PASS = 0u;
const ROWS_WANTED = 1u;
const OUTPUT_AT = 2u;
const SCRATCH_AT = 3u;
const SCRATCH_STRIDE = 4u;
const ROW_TABLE = 5u;
const WANTED_LIST = 6u;
const TERM_TABLE = 7u;
const SETS = 8u;
const COPIES = 9u;
const RUNS = 10u;
const LARGEST_AT = 11u;
const OUTPUT_ROWS = 12u;
const ROPES = 16u;

// The columns of the table of rows, each as long as the pass.
const TOKEN = 0u;
const POSITION = 1u;
const SET = 2u;
const PAGES = 3u;
const SLOT = 4u;
const RUN = 5u;

const NONE = 0xffffffffu;

fn row_fact(column: u32, row: u32) -> u32 {
  return batch[batch[ROW_TABLE] + column * batch[ROWS_OF_PASS] + row];
}

fn rows_of(wanted: u32) -> u32 {
  return select(batch[ROWS_OF_PASS], batch[ROWS_WANTED], wanted != 0u);
}

// The row of the pass that row `row` of a value is.
fn source_row(row: u32, wanted: u32) -> u32 {
  if (wanted != 0u) {
    return batch[batch[WANTED_LIST] + row];
  }
  return row;
}

// Where a value begins; NONE stands for the output.
fn place(offset: u32) -> u32 {
  return select(offset * batch[ROWS_OF_PASS], batch[OUTPUT_AT], offset == NONE);
}
