/* The part that shm and dax share: pages of a file or device, mapped shared, with its blocks set aside before
 * they are touched, so that no touch ends in SIGBUS for want of them. A file that has a name can still be cut
 * short by another process of the user: calls ask for its size first (file_pages_check).
 */
#include <errno.h>

#include "fail.h"
#include "prim/backing.h"
#include "prim/memory.h"
#include "provider/provider.h"

emx_status file_pages_take(pages* pages, int fd, const char* what) {
    const int error_number = backing_lock(fd);
    if (error_number == 0) {
        pages->fd = fd;
        return EMX_OK;
    }
    backing_close(fd);
    if (error_number != EAGAIN) return fail_system(error_number, "cannot lock %s", what);
    return fail(EMX_E_BUSY, "%s is in use by another tier, here or in another process; close that first",
                what);
}

emx_status file_pages_check_owner(const backing_info* info, const char* what) {
    if (info->owner != backing_user())
        return fail(EMX_E_PERMISSION,
                    "%s belongs to user %u, not to this process's user %u; choose another path", what,
                    info->owner, backing_user());
    if (!info->has_name || (info->mode & 022) == 0) return EMX_OK;
    return fail(EMX_E_PERMISSION,
                "%s has mode %o, so that others may write to it; expected 600: chmod go-w it first", what,
                info->mode);
}

size_t file_pages_resident(const pages* pages) {
    backing_info info;
    if (backing_inspect(pages->fd, &info) != 0) return 0;
    return info.allocated_bytes < pages->capacity_bytes ? (size_t)info.allocated_bytes
                                                        : pages->capacity_bytes;
}

static emx_status check_file_system(const pages* pages, const backing_info* info) {
    const size_t resident = file_pages_resident(pages), wanted = pages->capacity_bytes - resident;
    if (!info->is_file || wanted <= info->free_bytes) return EMX_OK;
    return fail(
        EMX_E_NO_MEMORY,
        "got a capacity of %zu bytes, of which %zu are to be taken from the file system; it has %llu free",
        pages->capacity_bytes, wanted, (unsigned long long)info->free_bytes);
}

/* Whether the file system can set blocks aside at all, found out on the first page. */
static emx_status check_reserving(const pages* pages, const backing_info* info) {
    const int error_number = info->is_file ? backing_reserve(pages->fd, 0, memory_page_bytes()) : 0;
    if (error_number == 0) return EMX_OK;
    return fail_system(
        error_number,
        "the file system cannot set blocks aside (fallocate); use a file on tmpfs, ext4 or xfs");
}

static emx_status map(pages* pages, bool synchronous) {
    int error_number =
        synchronous ? memory_map_file(pages->base, pages->capacity_bytes, pages->fd, true) : -1;
    if (error_number != 0)
        error_number = memory_map_file(pages->base, pages->capacity_bytes, pages->fd, false);
    if (error_number != 0) return fail_system(error_number, "cannot map %zu bytes", pages->capacity_bytes);
    memory_advise_huge(pages->base, pages->capacity_bytes);
    return EMX_OK;
}

emx_status file_pages_map(pages* pages, size_t capacity_bytes, size_t alignment, bool synchronous) {
    backing_info info;
    const int error_number = backing_inspect(pages->fd, &info);
    if (error_number != 0) return fail_system(error_number, "cannot inspect the file");
    emx_status status = pages_reserve(pages, capacity_bytes, alignment);
    if (status != EMX_OK) return status;
    pages->in_memory = info.in_memory;
    file_guard_open(&pages->guard, pages->fd, capacity_bytes);
    pages->touchable = true;
    status = check_file_system(pages, &info);
    if (status == EMX_OK && pages->in_memory) status = pages_promise(pages);
    if (status == EMX_OK) status = check_reserving(pages, &info);
    return status == EMX_OK ? map(pages, synchronous) : status;
}

emx_status file_pages_check(const pages* pages) {
    if (file_guard_holds(&pages->guard)) return EMX_OK;
    return fail(
        EMX_E_CORRUPT,
        "its file of %zu bytes was cut short by another process, and its memory is lost; close the context",
        pages->capacity_bytes);
}

void file_pages_close(pages* pages) {
    pages_release(pages);
    if (pages->fd >= 0) backing_close(pages->fd);
    pages->fd = -1;
}

emx_status file_pages_commit(pages* pages, size_t offset, size_t size_bytes) {
    const emx_status status = pages->in_memory ? pages_check_growth(pages, size_bytes) : EMX_OK;
    if (status != EMX_OK) return status;
    const int error_number = backing_reserve(pages->fd, offset, size_bytes);
    if (error_number != 0)
        return fail_system(error_number, "the file system refused %zu more bytes", size_bytes);
    return EMX_OK;
}

emx_status file_pages_decommit(pages* pages, size_t offset, size_t size_bytes) {
    const int error_number = backing_punch(pages->fd, offset, size_bytes);
    if (error_number != 0)
        return fail_system(error_number, "cannot give %zu bytes of the file back", size_bytes);
    return EMX_OK;
}
