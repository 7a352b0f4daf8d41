/* emucxl: memory in tiers, real or modelled, behind one interface. This is the whole C interface; `emucxl_lib.h` is the
 * one that was published with arXiv 2404.08311, on top of it.
 *
 * Conventions
 *   Every call that can fail returns an emx_status and hands its results out through pointers, which it leaves alone
 *   when it fails. Nothing prints, nothing exits, nothing reads the environment (emucxl_lib.h's emucxl_init does, and
 *   says so). What went wrong is told in words by emx_error_detail(), per thread, like errno.
 *   Sizes are in bytes, times in nanoseconds, bandwidths in gigabytes (1e9 bytes) per second; the names say so.
 *   A structure that grows with later versions begins with `struct_bytes`: set it to its sizeof.
 *
 * Thread safety
 *   Calls on different objects are independent. Calls on one object may run in any number of threads at once, except
 *   those named *_close and *_destroy, which end it: nothing else may use the object during or after them. Two threads
 *   that touch the same bytes order themselves, as with memcpy.
 */
#ifndef EMUCXL_H
#define EMUCXL_H

#include "emucxl/coherence.h"
#include "emucxl/context.h"
#include "emucxl/copy.h"
#include "emucxl/measure.h"
#include "emucxl/pool.h"
#include "emucxl/resources.h"
#include "emucxl/status.h"
#include "emucxl/timing.h"

#endif
