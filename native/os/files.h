// What Python's standard library does not do with the files that are written.
#pragma once

#include <cstdint>

namespace lg {

// Has the system begin to write a range of a file to the disk, without waiting. A hint: failing changes nothing.
void start_writeback(int fd, int64_t offset, int64_t length);

// Has the file system set aside the first `size` bytes of a file, so that writing them neither fails for want of space
// nor looks for it block by block. Returns errno, 0 on success.
int reserve(int fd, int64_t size);

} // namespace lg
