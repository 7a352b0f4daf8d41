/* tokenweave: the native core's C ABI.
 *
 * Every function returns a status (TW_OK or a negative TW_ERROR_*) or a plain value; none prints, none exits.
 */
#ifndef TOKENWEAVE_H
#define TOKENWEAVE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TW_API __attribute__((visibility("default")))

typedef enum tw_status {
    TW_OK = 0,
    TW_ERROR_INVALID_ARGUMENT = -1,
    TW_ERROR_OUT_OF_MEMORY = -2,
    TW_ERROR_UNSUPPORTED = -3,
    TW_ERROR_TIMEOUT = -4,
    TW_ERROR_ABORTED = -5,
} tw_status;

/* Version of this ABI; the Python loader refuses another. */
TW_API int tw_abi_version(void);

#ifdef __cplusplus
}
#endif

#endif
