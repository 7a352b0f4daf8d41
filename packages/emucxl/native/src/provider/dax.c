/* dax: a device that maps memory (/dev/daxX.Y), or an ordinary file that stands in for one.
 *
 * A device has all its pages from the start: there is nothing to commit. What it held before is still there,
 * so the heap zeroes what it hands out. A file that stands in gets its blocks set aside like one of shm.
 */
#include <errno.h>

#include "fail.h"
#include "prim/backing.h"
#include "prim/memory.h"
#include "provider/provider.h"

static const char* unavailable(void) {
    return NULL;
} /* a file can always stand in; a missing device is told when it is opened */

static emx_status check_kind(const char* path, const backing_info* info) {
    if (!info->is_device && !info->is_file)
        return fail(
            EMX_E_INVALID,
            "got '%s', which is neither a device nor a file; expected /dev/daxX.Y or a file in its place",
            path);
    if (info->size_bytes > 0) return EMX_OK;
    if (info->is_device)
        return fail(EMX_E_UNAVAILABLE, "got '%s', a device that has no size in sysfs; expected a dax device",
                    path);
    return fail(EMX_E_INVALID, "got '%s', which is empty; expected a file of the size that it stands in for",
                path);
}

static emx_status fit_size(const emx_tier_config* config, const backing_info* info, size_t* capacity_bytes) {
    const uint64_t grain = info->alignment_bytes, most = info->size_bytes / grain * grain;
    const uint64_t wanted = config->capacity_bytes > 0 ? config->capacity_bytes : most;
    if (wanted > most || most == 0)
        return fail(
            EMX_E_INVALID,
            "got a capacity of %llu bytes; expected at most %llu, what '%s' has in whole units of %llu",
            (unsigned long long)wanted, (unsigned long long)most, config->path, (unsigned long long)grain);
    *capacity_bytes = (size_t)((wanted + grain - 1) / grain * grain);
    return EMX_OK;
}

static emx_status open_taken(const emx_tier_config* config, pages* pages) {
    backing_info info;
    size_t capacity_bytes = 0;
    const int error_number = backing_inspect(pages->fd, &info);
    if (error_number != 0) return fail_system(error_number, "cannot inspect '%s'", config->path);
    emx_status status = check_kind(config->path, &info);
    if (status == EMX_OK && info.is_file) status = file_pages_check_owner(&info, config->path);
    if (status == EMX_OK) status = fit_size(config, &info, &capacity_bytes);
    if (status != EMX_OK) return status;
    pages->numa_node = info.numa_node;
    const size_t alignment =
        info.alignment_bytes > PAGES_ALIGNMENT ? (size_t)info.alignment_bytes : PAGES_ALIGNMENT;
    return file_pages_map(pages, capacity_bytes, alignment, true);
}

static emx_status dax_open(const emx_tier_config* config, pages* pages) {
    bool made;
    int fd;
    if (config->path == NULL)
        return fail(EMX_E_INVALID,
                    "got no path; expected the device's (/dev/daxX.Y), or that of a file in its place");
    int error_number = backing_open(config->path, false, &fd, &made);
    if (error_number == ELOOP) error_number = backing_open_device(config->path, &fd);
    if (error_number == ELOOP)
        return fail(EMX_E_INVALID,
                    "got '%s', which is a symbolic link to no device; expected the file itself",
                    config->path);
    if (error_number != 0)
        return fail_system(error_number, "cannot open '%s' for reading and writing", config->path);
    emx_status status = file_pages_take(pages, fd, config->path);
    if (status == EMX_OK) status = open_taken(config, pages);
    if (status != EMX_OK) file_pages_close(pages);
    return status;
}

static bool is_device(const pages* pages) {
    backing_info info;
    return backing_inspect(pages->fd, &info) == 0 && info.is_device;
}

static emx_status dax_commit(pages* pages, size_t offset, size_t size_bytes) {
    return is_device(pages) ? EMX_OK : file_pages_commit(pages, offset, size_bytes);
}

const provider provider_dax = {
    .name = "dax",
    .unavailable = unavailable,
    .open = dax_open,
    .close = file_pages_close,
    .resident = file_pages_resident,
    .commit = dax_commit,
};
