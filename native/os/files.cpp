#include "os/files.h"

#include <cerrno>

#ifdef __linux__
#include <fcntl.h>
#endif

namespace lg {

void start_writeback(int fd, int64_t offset, int64_t length) {
#ifdef __linux__
    (void)sync_file_range(fd, offset, length, SYNC_FILE_RANGE_WRITE);
#else
    (void)fd, (void)offset, (void)length;
#endif
}

int reserve(int fd, int64_t size) {
#ifdef __linux__
    return fallocate(fd, 0, 0, size) == 0 ? 0 : errno;
#else
    (void)fd, (void)size;
    return ENOSYS;
#endif
}

} // namespace lg
