/* shm: memory that other processes can map: a memfd of this tier's own, a file at a path, or a descriptor
 * passed in. */
#include <errno.h>
#include <stdio.h>

#include "fail.h"
#include "prim/backing.h"
#include "prim/memory.h"
#include "provider/provider.h"

static const char* unavailable(void) { return NULL; }

/* An empty file takes the capacity asked for; any other has to be of that size. */
static emx_status fit_size(const emx_tier_config* config, pages* pages, const char* what,
                           size_t* capacity_bytes) {
    backing_info info;
    int error_number = backing_inspect(pages->fd, &info);
    if (error_number != 0) return fail_system(error_number, "cannot inspect %s", what);
    if (!info.is_file)
        return fail(EMX_E_INVALID, "got %s, which is no regular file; expected a file or memfd", what);
    const emx_status owned = file_pages_check_owner(&info, what);
    if (owned != EMX_OK) return owned;
    const size_t page = memory_page_bytes();
    *capacity_bytes =
        config->capacity_bytes > 0 ? pages_round_up(config->capacity_bytes) : info.size_bytes / page * page;
    pages->fresh_is_zero = info.size_bytes == 0;
    if (info.size_bytes == *capacity_bytes && info.size_bytes > 0) return EMX_OK;
    if (info.size_bytes > 0 || *capacity_bytes == 0)
        return fail(config->path != NULL ? EMX_E_EXISTS : EMX_E_INVALID,
                    "%s has %llu bytes; expected %llu, in whole pages of %zu: give the file's size (0 takes "
                    "what it has), or "
                    "another file",
                    what, (unsigned long long)info.size_bytes, (unsigned long long)config->capacity_bytes,
                    page);
    error_number = backing_resize(pages->fd, *capacity_bytes);
    return error_number == 0
               ? EMX_OK
               : fail_system(error_number, "cannot make %s %zu bytes large", what, *capacity_bytes);
}

static emx_status open_memfd(const emx_tier_config* config, pages* pages) {
    emx_status status = pages_require_capacity(config);
    const size_t capacity_bytes = pages_round_up(config->capacity_bytes);
    int fd;
    if (status != EMX_OK) return status;
    const int error_number = memory_create_file("emucxl-tier", capacity_bytes, &fd);
    if (error_number != 0)
        return fail_system(error_number, "cannot create a memfd of %zu bytes", capacity_bytes);
    status = file_pages_take(pages, fd, "the memfd");
    if (status != EMX_OK) return status;
    /* Where it can't be had, whoever maps the tier is trusted not to cut it short. */
    (void)backing_seal(pages->fd);
    pages->fresh_is_zero = true;
    return file_pages_map(pages, capacity_bytes, PAGES_ALIGNMENT, false);
}

static emx_status open_taken(const emx_tier_config* config, pages* pages, int fd, const char* what) {
    size_t capacity_bytes = 0;
    emx_status status = file_pages_take(pages, fd, what);
    if (status == EMX_OK) status = fit_size(config, pages, what, &capacity_bytes);
    return status == EMX_OK ? file_pages_map(pages, capacity_bytes, PAGES_ALIGNMENT, false) : status;
}

static emx_status open_fd(const emx_tier_config* config, pages* pages) {
    char what[32];
    snprintf(what, sizeof what, "descriptor %d", config->fd);
    backing_info info;
    int fd, error_number = backing_inspect(config->fd, &info);
    if (error_number != 0)
        return fail(EMX_E_INVALID, "got %s, which is not open here; pass it on to this process", what);
    if (!info.is_file)
        return fail(EMX_E_INVALID, "got %s, which is no regular file; expected a file or memfd", what);
    if (!info.is_writable)
        return fail(EMX_E_PERMISSION, "got %s, which is not open for reading and writing", what);
    error_number = backing_reopen(config->fd, &fd);
    if (error_number != 0) return fail_system(error_number, "cannot open %s anew", what);
    return open_taken(config, pages, fd, what);
}

static emx_status open_path(const emx_tier_config* config, pages* pages) {
    bool made;
    int fd;
    const int error_number = backing_open(config->path, true, &fd, &made);
    if (error_number == ELOOP)
        return fail(EMX_E_INVALID, "got '%s', which is a symbolic link; expected the file itself",
                    config->path);
    if (error_number != 0)
        return fail_system(error_number, "cannot open '%s' for reading and writing", config->path);
    const emx_status status = open_taken(config, pages, fd, config->path);
    if (status != EMX_OK && made) backing_remove(config->path);
    return status;
}

static emx_status shm_open_tier(const emx_tier_config* config, pages* pages) {
    if (config->path != NULL && config->fd >= 0)
        return fail(
            EMX_E_INVALID,
            "got both the path '%s' and descriptor %d; expected one of them: set fd to -1, or path to NULL",
            config->path, config->fd);
    const emx_status status = config->path != NULL ? open_path(config, pages)
                              : config->fd >= 0    ? open_fd(config, pages)
                                                   : open_memfd(config, pages);
    if (status != EMX_OK) file_pages_close(pages);
    return status;
}

const provider provider_shm = {
    .name = "shm",
    .unavailable = unavailable,
    .open = shm_open_tier,
    .close = file_pages_close,
    .resident = file_pages_resident,
    .commit = file_pages_commit,
    .decommit = file_pages_decommit,
};
