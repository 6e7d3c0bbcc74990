// Mapped files that are cut short, or fail, while they are read. The kernel answers such a read with SIGBUS, which would
// end the process without a word. The handler puts a page of zeros in its place and takes note; whoever was reading asks
// afterwards, before anything is made of the zeros.
#pragma once

#include <cstddef>

namespace lg {

// Installs the handler, once. SIGBUS outside of a watched mapping does what it did before.
void guard_mappings();

// Watches [start, start + length): a slot to name it by, or -1 if there are too many.
int watch_mapping(const void* start, size_t length);
void forget_mapping(int slot);

// Whether a page of it could not be read.
bool is_damaged(int slot);

} // namespace lg
