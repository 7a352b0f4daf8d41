/* The status that a call returns. */
#ifndef EMUCXL_STATUS_H
#define EMUCXL_STATUS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EMX_API __attribute__((visibility("default")))
#define EMX_ABI_VERSION 1

typedef enum emx_status {
    EMX_OK = 0,
    EMX_E_INVALID = 1,       /* an argument makes no sense */
    EMX_E_BAD_POINTER = 2,   /* not a live allocation of this context: never was, or freed */
    EMX_E_OUT_OF_BOUNDS = 3, /* the range leaves the allocation, or the region */
    EMX_E_TIER_FULL = 4,     /* the tier's capacity is used up */
    EMX_E_NO_MEMORY = 5,     /* the system cannot give that much */
    EMX_E_UNAVAILABLE = 6,   /* this system has no such thing */
    EMX_E_TIMEOUT = 7,       /* a bounded wait ended */
    EMX_E_BUSY = 8,          /* in use: by a copy in flight, another host, another process */
    EMX_E_POISONED = 9,      /* the range holds memory that was reported bad */
    EMX_E_FENCED = 10,       /* this host's lease ran out; what it held is no longer its own */
    EMX_E_QUOTA = 11,        /* the host would hold more than it may */
    EMX_E_POOL_FULL = 12,    /* the pool has too few free extents, or no free slot */
    EMX_E_EXISTS = 13,       /* the name is taken */
    EMX_E_NOT_FOUND = 14,    /* nothing of that name */
    EMX_E_CORRUPT = 15,      /* a structure contradicts itself */
    EMX_E_FOREIGN = 16,      /* not made by this library, or by another version of it */
    EMX_E_PERMISSION = 17,   /* the system, or the access mode, forbids it */
    EMX_E_TOO_FAST = 18,     /* the model asks for more than this machine can do */
    EMX_E_CLOSED = 19,       /* the object was closed */
    EMX_E_SYSTEM = 20,       /* a system call failed in a way that no other status tells */
    EMX_E_CANCELLED = 21,    /* it was cancelled before it was done */
} emx_status;

/* The identifier of a status ("EMX_E_TIER_FULL"), and one line that explains it. Never NULL. */
EMX_API const char* emx_status_name(emx_status status);
EMX_API const char* emx_status_text(emx_status status);

/* The detail of this thread's last failed call: what it got, what it expected, and what to do. Valid until
 * the thread's next failing call; empty before the first. A call that succeeds leaves it alone. */
EMX_API const char* emx_error_detail(void);

/* EMX_ABI_VERSION of the library that was loaded. */
EMX_API uint32_t emx_abi_version(void);

#ifdef __cplusplus
}
#endif
#endif
