// Keys and values of one layer, in slots of `key_words` and `value_words`: PAGE slots are a page, and a sequence's pages
// lie anywhere. F32, or F16 two to a word.
@group(2) @binding(0) var<storage, read_write> held: array<u32>;

const PAGE = 16u;
