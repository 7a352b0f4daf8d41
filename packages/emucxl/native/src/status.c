#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "fail.h"
#include "thread.h"

static const struct {
    const char *name, *text;
} statuses[] = {
    [EMX_OK] = {"EMX_OK", "success"},
    [EMX_E_INVALID] = {"EMX_E_INVALID", "an argument makes no sense"},
    [EMX_E_BAD_POINTER] = {"EMX_E_BAD_POINTER", "the pointer is not in a live allocation of this context"},
    [EMX_E_OUT_OF_BOUNDS] = {"EMX_E_OUT_OF_BOUNDS", "the range leaves the allocation or region"},
    [EMX_E_TIER_FULL] = {"EMX_E_TIER_FULL", "the tier's capacity is used up"},
    [EMX_E_NO_MEMORY] = {"EMX_E_NO_MEMORY", "the system cannot give that much memory"},
    [EMX_E_UNAVAILABLE] = {"EMX_E_UNAVAILABLE", "this system has no such thing"},
    [EMX_E_TIMEOUT] = {"EMX_E_TIMEOUT", "the wait ended at its bound"},
    [EMX_E_BUSY] = {"EMX_E_BUSY", "in use by a copy in flight, another host or another process"},
    [EMX_E_POISONED] = {"EMX_E_POISONED", "the range holds memory that was reported bad"},
    [EMX_E_FENCED] = {"EMX_E_FENCED", "the host's lease ran out"},
    [EMX_E_QUOTA] = {"EMX_E_QUOTA", "the host would hold more than its quota"},
    [EMX_E_POOL_FULL] = {"EMX_E_POOL_FULL", "the pool has too little room"},
    [EMX_E_EXISTS] = {"EMX_E_EXISTS", "the name is taken"},
    [EMX_E_NOT_FOUND] = {"EMX_E_NOT_FOUND", "there is nothing of that name"},
    [EMX_E_CORRUPT] = {"EMX_E_CORRUPT", "a structure contradicts itself"},
    [EMX_E_FOREIGN] = {"EMX_E_FOREIGN", "not made by this library, or by another version of it"},
    [EMX_E_PERMISSION] = {"EMX_E_PERMISSION", "the system, or the access mode, forbids it"},
    [EMX_E_TOO_FAST] = {"EMX_E_TOO_FAST", "the model asks for more than this machine can do"},
    [EMX_E_CLOSED] = {"EMX_E_CLOSED", "the object is closed"},
    [EMX_E_SYSTEM] = {"EMX_E_SYSTEM", "a system call failed"},
    [EMX_E_CANCELLED] = {"EMX_E_CANCELLED", "it was cancelled before it was done"},
};

static int is_known(emx_status status) { return (size_t)status < sizeof(statuses) / sizeof(statuses[0]); }

const char* emx_status_name(emx_status status) {
    return is_known(status) ? statuses[status].name : "unknown status";
}

const char* emx_status_text(emx_status status) {
    return is_known(status) ? statuses[status].text : "unknown status";
}

const char* emx_error_detail(void) { return thread_self()->detail; }

uint32_t emx_abi_version(void) { return EMX_ABI_VERSION; }

/* In parentheses, since fail.h has macros of these names for the linter. */
emx_status(fail)(emx_status status, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(thread_self()->detail, DETAIL_BYTES, format, arguments);
    va_end(arguments);
    return status;
}

static emx_status status_of(int error_number) {
    switch (error_number) {
        case ENOMEM:
        case ENOSPC:
        case EFBIG:
            return EMX_E_NO_MEMORY;
        case EACCES:
        case EPERM:
        case EROFS:
            return EMX_E_PERMISSION;
        case ENOENT:
        case ENODEV:
        case ENXIO:
            return EMX_E_NOT_FOUND;
        case EBUSY:
        case EAGAIN:
            return EMX_E_BUSY;
        default:
            return EMX_E_SYSTEM;
    }
}

emx_status(fail_system)(int error_number, const char* format, ...) {
    char* detail = thread_self()->detail;
    va_list arguments;
    va_start(arguments, format);
    const int written = vsnprintf(detail, DETAIL_BYTES, format, arguments);
    va_end(arguments);
    if (written >= 0 && (size_t)written < DETAIL_BYTES) {
        char text[96];
        snprintf(
            detail + written, DETAIL_BYTES - (size_t)written, ": %s%s",
            strerror_r(error_number, text, sizeof text), /* GNU's: returns the text */
            error_number == EFBIG ? "; raise the limit on the size of files (ulimit -f, RLIMIT_FSIZE)" : "");
    }
    return status_of(error_number);
}
