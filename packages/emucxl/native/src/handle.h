/* Handles that a call can tell from what is none.
 *
 * The first word of every object that a program holds names its kind while it is open. The memory of a closed
 * one is kept for the next one of its kind, so that a stale handle is refused (EMX_E_CLOSED) instead of read
 * from memory that is gone, unless the next one lives there by then. A pointer to anything else is refused
 * too, as long as it can be read.
 *
 * Thread safety: any call in any thread. It is the program's to close an object once no other call uses it.
 */
#ifndef EMX_HANDLE_H
#define EMX_HANDLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "emucxl/status.h"

typedef enum handle_kind {
    HANDLE_LINK,
    HANDLE_CACHE,
    HANDLE_ENGINE,
    HANDLE_COMPLETION,
    HANDLE_POOL,
    HANDLE_HOST,
    HANDLE_REGION,
    NUM_HANDLE_KINDS,
} handle_kind;

/* The first field of each such object. */
typedef struct handle {
    uint64_t mark; /* handle_mark of its kind, or 0 */
    struct handle* next_kept;
} handle;

/* Zeroed memory for an object that begins with a handle, always of one size for a kind; NULL: there is none.
 * It is open from handle_open to handle_free. */
void* handle_alloc(handle_kind kind, size_t size_bytes);
void handle_free(handle_kind kind, void* object);

static inline uint64_t handle_mark(handle_kind kind) { return UINT64_C(0x656d78756e640000) | (uint64_t)kind; }
static inline void handle_open(handle_kind kind, void* object) {
    ((handle*)object)->mark = handle_mark(kind);
}

static inline bool handle_is(handle_kind kind, const void* object) {
    return __builtin_expect(object != NULL && ((const handle*)object)->mark == handle_mark(kind), 1);
}

/* EMX_E_INVALID for NULL, EMX_E_CLOSED for what is not open. */
emx_status handle_refuse(handle_kind kind, const void* object) __attribute__((cold));

static inline emx_status handle_require(handle_kind kind, const void* object) {
    return handle_is(kind, object) ? EMX_OK : handle_refuse(kind, object);
}

#endif
