/* The pool that hosts die in, and looks at it. */
#include <unistd.h>

#include "kill_pool/kills.h"

const emx_join_config QUIET = {.struct_bytes = sizeof QUIET,
                               .flags = EMX_JOIN_NO_HEARTBEAT,
                               .lease_ns = UINT64_C(600000000000),
                               .quota_bytes = EXTENTS * EXTENT};
const emx_carve_config PERSISTENT = {.struct_bytes = sizeof PERSISTENT, .flags = EMX_CARVE_PERSISTENT};

emx_pool* make_pool(void) {
    const emx_pool_config config = {.struct_bytes = sizeof config,
                                    .size_bytes = EXTENTS * EXTENT,
                                    .extent_bytes = EXTENT,
                                    .max_regions = 16};
    emx_pool* pool;
    unlink(path);
    REQUIRE(emx_pool_create(path, &config, &pool) == EMX_OK);
    return pool;
}

emx_pool_info info_of(emx_pool* pool) {
    emx_pool_info info;
    REQUIRE(emx_pool_get_info(pool, &info) == EMX_OK);
    return info;
}

unsigned char* bytes_of(emx_region* region, uint64_t* size_bytes) {
    emx_region_info info;
    REQUIRE(emx_region_get_info(region, &info) == EMX_OK);
    *size_bytes = info.size_bytes;
    return info.base;
}

bool is_filled(emx_region* region, int value) {
    uint64_t size_bytes;
    const unsigned char* bytes = bytes_of(region, &size_bytes);
    for (uint64_t i = 0; i < size_bytes; i++)
        if (bytes[i] != value) return false;
    return true;
}

void foul_free_extents(emx_host* host, emx_pool* pool) {
    const uint64_t free_bytes = info_of(pool).free_extents * EXTENT;
    emx_region* region;
    REQUIRE(free_bytes > 0);
    REQUIRE(emx_host_carve(host, "all of it", free_bytes, NULL, &region) == EMX_OK);
    REQUIRE(is_filled(region, 0));
    REQUIRE(emx_region_fill(region, 0, 0xAA, free_bytes) == EMX_OK);
    emx_region_close(region);
}
