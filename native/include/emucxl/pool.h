/* A pool: memory that several hosts (processes that stand for them, or real ones over one device) carve up and share. */
#ifndef EMUCXL_POOL_H
#define EMUCXL_POOL_H

#include <stdbool.h>

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct emx_pool emx_pool;
typedef struct emx_region emx_region;

typedef struct emx_region_info {
  char tag[64];
  void *base;          /* where this process has it mapped, contiguous */
  uint64_t size_bytes;
  uint32_t writable;
  uint32_t epoch;      /* of the host that holds it here */
} emx_region_info;

EMX_API emx_status emx_region_get_info(const emx_region *region, emx_region_info *info);
/* EMX_OK if this host may access the range now; EMX_E_FENCED, _POISONED, _PERMISSION or _OUT_OF_BOUNDS if not. */
EMX_API emx_status emx_region_check_access(const emx_region *region, uint64_t offset, uint64_t size_bytes, bool write);

#ifdef __cplusplus
}
#endif
#endif
