/* How a call of the library fails: it records the detail for this thread and returns the status.
 *
 *     return fail(EMX_E_INVALID, "got alignment %zu; expected a power of two up to 2 MiB", alignment);
 */
#ifndef EMX_FAIL_H
#define EMX_FAIL_H

#include "emucxl/status.h"

emx_status fail(emx_status status, const char* format, ...) __attribute__((format(printf, 2, 3), cold));
/* Adds errno's text to the detail, and maps the usual codes: ENOMEM, EACCES and EPERM, ENOENT, EBUSY, ENOSPC.
 */
emx_status fail_system(int error_number, const char* format, ...) __attribute__((format(printf, 2, 3), cold));

#ifdef __clang_analyzer__ /* it sees one file at a time: told that what failed is never EMX_OK */
#define fail(status, ...) (fail((status), __VA_ARGS__), (status))
#define fail_system(...) (fail_system(__VA_ARGS__), EMX_E_SYSTEM)
#endif

#endif
