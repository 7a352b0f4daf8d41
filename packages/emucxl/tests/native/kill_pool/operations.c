/* What a host does before it dies. */
#include "kill_pool/kills.h"

static void do_nothing(emx_pool* pool, emx_host* host) { (void)pool, (void)host; }

static void do_carve(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_carve(host, "mine", 3 * EXTENT, NULL, &region) == EMX_OK);
    REQUIRE(is_filled(region, 0));
    REQUIRE(emx_region_fill(region, 0, 0x11, 3 * EXTENT) == EMX_OK);
    emx_region_close(region);
}

static void do_persist(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_carve(host, "kept", 2 * EXTENT, &PERSISTENT, &region) == EMX_OK);
    emx_region_close(region);
    REQUIRE(emx_host_open(host, "kept", true, &region) == EMX_OK);
    REQUIRE(emx_region_release(region) == EMX_OK);
}

static void do_resize(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_carve(host, "kept", EXTENT, &PERSISTENT, &region) == EMX_OK);
    REQUIRE(emx_region_resize(region, 4 * EXTENT + 7) == EMX_OK);
    REQUIRE(is_filled(region, 0));
    REQUIRE(emx_region_resize(region, 10) == EMX_OK);
    REQUIRE(emx_region_resize(region, 2 * EXTENT) == EMX_OK);
    REQUIRE(emx_region_release(region) == EMX_OK);
}

static void do_share(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_open(host, "shared", false, &region) == EMX_OK);
    REQUIRE(is_filled(region, 0x55));
    emx_region_close(region);
    REQUIRE(emx_host_open(host, "shared", true, &region) == EMX_OK);
    REQUIRE(emx_region_fill(region, 0, 0x55, EXTENT) == EMX_OK);
    emx_region_close(region);
    REQUIRE(emx_host_carve(host, "shared", EXTENT, NULL, &region) == EMX_E_EXISTS);
}

void do_adopt(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_open(host, "orphan", true, &region) == EMX_OK);
    REQUIRE(is_filled(region, 0x77));
    REQUIRE(emx_region_resize(region, 3 * EXTENT) == EMX_OK);
    REQUIRE(emx_region_resize(region, EXTENT) == EMX_OK);
    emx_region_close(region);
}

static void do_heartbeat(emx_pool* pool, emx_host* host) {
    (void)pool;
    REQUIRE(emx_host_heartbeat(host) == EMX_OK);
}

static void do_poison(emx_pool* pool, emx_host* host) {
    emx_region* region;
    (void)pool;
    REQUIRE(emx_host_carve(host, "mine", 2 * EXTENT, NULL, &region) == EMX_OK);
    REQUIRE(emx_region_poison(region, EXTENT - 64, 128) == EMX_OK);
    REQUIRE(emx_region_fill(region, 0, 1, EXTENT) == EMX_E_POISONED);
    emx_region_close(region);
}

/* A carve that takes all there is, and then finds it too little. */
static void do_refuse(emx_pool* pool, emx_host* host) {
    emx_region* region;
    REQUIRE(emx_host_carve(host, "mine", info_of(pool).free_extents * EXTENT + 1, NULL, &region) ==
            EMX_E_POOL_FULL);
}

const named_operation OPERATIONS[NUM_OPERATIONS] = {
    {"join, leave", do_nothing}, {"carve", do_carve},   {"persist, release", do_persist},
    {"grow, shrink", do_resize}, {"share", do_share},   {"adopt", do_adopt},
    {"heartbeat", do_heartbeat}, {"poison", do_poison}, {"refused carve", do_refuse}};

void do_reclaim(emx_pool* pool, emx_host* host) {
    (void)host;
    REQUIRE(emx_pool_reclaim(pool, 0, NULL) == EMX_OK);
}
