#include "shared_page.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../fail.h"
#include "limits.h"

static emx_status check_limit(size_t size_bytes, const char* what) {
    const int error = limit_file_size(size_bytes);
    return error == 0 ? EMX_OK : fail_system(error, "cannot give '%s' %zu bytes", what, size_bytes);
}

emx_status shared_page_create(const char* name, size_t size_bytes, int* fd) {
    const emx_status limited = check_limit(size_bytes, name);
    if (limited != EMX_OK) return limited;
    int made = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made < 0) return fail_system(errno, "cannot make the memfd '%s'", name);
    if (ftruncate(made, (off_t)size_bytes) != 0) {
        int error = errno;
        close(made);
        return fail_system(error, "cannot give the memfd '%s' %zu bytes", name, size_bytes);
    }
    fcntl(made, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    *fd = made;
    return EMX_OK;
}

static emx_status check_size(const struct stat* status, size_t size_bytes, const char* what) {
    if (S_ISREG(status->st_mode) && (uint64_t)status->st_size == size_bytes) return EMX_OK;
    return fail(EMX_E_FOREIGN, "%s is a file of %lld bytes; expected one of %zu that this library made", what,
                (long long)status->st_size, size_bytes);
}

emx_status shared_page_duplicate(int fd, size_t size_bytes, int* own) {
    struct stat status;
    if (fstat(fd, &status) != 0)
        return fail(EMX_E_INVALID,
                    "got the descriptor %d (%s); expected one that was passed on to this process", fd,
                    strerror(errno));
    char what[32];
    snprintf(what, sizeof what, "descriptor %d", fd);
    emx_status checked = check_size(&status, size_bytes, what);
    if (checked != EMX_OK) return checked;
    int made = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (made < 0) return fail_system(errno, "cannot duplicate descriptor %d", fd);
    *own = made;
    return EMX_OK;
}

static emx_status check_owner(const struct stat* status, const char* path) {
    if (status->st_uid == geteuid() && (status->st_mode & 077) == 0) return EMX_OK;
    return fail(EMX_E_PERMISSION,
                "'%s' belongs to user %u and has mode %o; expected a file of user %u with mode 600", path,
                (unsigned)status->st_uid, (unsigned)(status->st_mode & 07777), (unsigned)geteuid());
}

emx_status shared_page_open(const char* path, size_t size_bytes, int* fd) {
    int opened = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (opened < 0) return fail_system(errno, "cannot open '%s'", path);
    struct stat status;
    emx_status checked =
        fstat(opened, &status) == 0 ? EMX_OK : fail_system(errno, "cannot look at '%s'", path);
    if (checked == EMX_OK) checked = check_size(&status, size_bytes, path);
    if (checked == EMX_OK) checked = check_owner(&status, path);
    if (checked != EMX_OK) {
        close(opened);
        return checked;
    }
    *fd = opened;
    return EMX_OK;
}

static emx_status write_whole(int fd, const char* path, const void* contents, size_t size_bytes) {
    ssize_t written = pwrite(fd, contents, size_bytes, 0);
    if (written == (ssize_t)size_bytes) return EMX_OK;
    return fail_system(written < 0 ? errno : ENOSPC, "cannot write %zu bytes for '%s'", size_bytes, path);
}

emx_status shared_page_publish(const char* path, const void* contents, size_t size_bytes, int* fd) {
    const emx_status limited = check_limit(size_bytes, path);
    if (limited != EMX_OK) return limited;
    char* temporary;
    if (asprintf(&temporary, "%s.XXXXXX", path) < 0) return fail(EMX_E_NO_MEMORY, "no memory for a path");
    int made = mkostemp(temporary, O_CLOEXEC); /* mode 0600 */
    if (made < 0) {
        emx_status status = fail_system(errno, "cannot make a file beside '%s'", path);
        free(temporary);
        return status;
    }
    emx_status status = write_whole(made, path, contents, size_bytes);
    if (status == EMX_OK && link(temporary, path) != 0)
        status = errno == EEXIST ? fail(EMX_E_EXISTS, "'%s' exists", path)
                                 : fail_system(errno, "cannot make '%s'", path);
    unlink(temporary);
    free(temporary);
    if (status != EMX_OK) {
        close(made);
        return status;
    }
    *fd = made;
    return EMX_OK;
}

emx_status shared_page_map(int fd, size_t size_bytes, void** page) {
    void* mapped = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        return fail_system(errno, "cannot map %zu bytes of descriptor %d", size_bytes, fd);
    *page = mapped;
    return EMX_OK;
}

void shared_page_unmap(void* page, size_t size_bytes) { munmap(page, size_bytes); }

void shared_page_close(int fd) { close(fd); }
