/* Every call of the C interface with NULL, with memory that is no object, and with objects that were closed:
 * a status, or a value that says no, and never a crash. Run with the name of a fact; without, it lists them.
 */
#include <emucxl.h>
#include <emucxl_lib.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "require.h"

#define REFUSED(call) REQUIRE((call) != EMX_OK && emx_error_detail()[0] != '\0')

enum { MIB = 1 << 20 };

static union {
    emx_link_config link;
    emx_link_stats link_stats;
    emx_cache_stats cache_stats;
    emx_tier_info tier_info;
    emx_tier_stats tier_stats;
    emx_allocation allocation;
    emx_pool_info pool;
    emx_host_info host;
    emx_region_info region;
    emx_reclaim_report report;
    uint64_t word;
    char bytes[4096];
} out;

static void use_link(void* none) {
    emx_link* link = none;
    uint64_t time_ns;
    REFUSED(emx_link_get_config(link, &out.link));
    REFUSED(emx_link_get_stats(link, &out.link_stats));
    REFUSED(emx_link_reserve(link, EMX_READ, 64, 0, &time_ns));
    REQUIRE(emx_link_fd(link) == -1);
    emx_link_close(link);
}

static void use_cache(void* none) {
    emx_cache* cache = none;
    REFUSED(emx_cache_read(cache, 0, out.bytes, 1));
    REFUSED(emx_cache_write(cache, 0, out.bytes, 1));
    REFUSED(emx_cache_flush(cache, 0, 1));
    REFUSED(emx_cache_invalidate(cache, 0, 1));
    REFUSED(emx_cache_flush_invalidate(cache, 0, 1));
    REFUSED(emx_cache_load_u64(cache, 0, &out.word));
    REFUSED(emx_cache_store_u64(cache, 0, 1));
    REFUSED(emx_cache_get_stats(cache, &out.cache_stats));
    emx_cache_fence(cache);
    emx_cache_close(cache);
}

static void use_engine(void* none) {
    emx_completion* completion;
    REFUSED(emx_engine_submit(none, NULL, 0, &completion));
    REFUSED(emx_engine_submit_patterns(none, NULL, 0, &completion));
    emx_engine_close(none);
}

static void use_completion(void* none) {
    REFUSED(emx_completion_wait(none, 0));
    REFUSED(emx_completion_cancel(none));
    emx_completion_release(none);
}

static void use_pool(void* none) {
    emx_pool* pool = none;
    emx_host* host;
    uint32_t count;
    REFUSED(emx_pool_get_info(pool, &out.pool));
    REFUSED(emx_pool_list_hosts(pool, NULL, 0, &count));
    REFUSED(emx_pool_list_regions(pool, NULL, 0, &count));
    REFUSED(emx_pool_list_poison(pool, NULL, 0, &count));
    REFUSED(emx_pool_poison(pool, 0, 64));
    REFUSED(emx_pool_reclaim(pool, 0, &out.report));
    REFUSED(emx_pool_check(pool));
    REFUSED(emx_pool_join(pool, "host", NULL, &host));
    emx_pool_close(pool);
}

static void use_host(void* none) {
    emx_host* host = none;
    emx_region* region;
    REFUSED(emx_host_heartbeat(host));
    REFUSED(emx_host_get_info(host, &out.host));
    REFUSED(emx_host_carve(host, "tag", 1, NULL, &region));
    REFUSED(emx_host_open(host, "tag", false, &region));
    emx_host_leave(host);
}

static void use_region(void* none) {
    emx_region* region = none;
    REFUSED(emx_region_get_info(region, &out.region));
    REFUSED(emx_region_check_access(region, 0, 1, false));
    REFUSED(emx_region_read(region, 0, out.bytes, 1));
    REFUSED(emx_region_write(region, 0, out.bytes, 1));
    REFUSED(emx_region_fill(region, 0, 1, 1));
    REFUSED(emx_region_poison(region, 0, 64));
    REFUSED(emx_region_resize(region, 1));
    REFUSED(emx_region_release(region));
    emx_region_close(region);
}

static void use_context(void* none) {
    emx_context* context = none;
    emx_engine* engine;
    emx_tier tier;
    void* pointer;
    double samples[2];
    const emx_tier_config config = {
        .struct_bytes = sizeof config, .name = "a", .capacity_bytes = MIB, .fd = -1};
    const emx_calibration calibration = {.struct_bytes = sizeof calibration};
    const emx_access access = {out.bytes, 0, out.bytes, 1};
    REFUSED(emx_context_set_calibration(context, &calibration));
    REFUSED(emx_context_set_name(context, "a"));
    REQUIRE(emx_context_now_ns(context) == 0);
    emx_context_advance(context, 1);
    REFUSED(emx_tier_add(context, &config, &tier));
    REQUIRE(emx_tier_count(context) == 0);
    REFUSED(emx_tier_get_info(context, 0, &out.tier_info));
    REFUSED(emx_tier_get_stats(context, 0, &out.tier_stats));
    REFUSED(emx_tier_trim(context, 0));
    REFUSED(emx_context_check(context));
    REFUSED(emx_alloc(context, 0, 1, 0, &pointer));
    REFUSED(emx_free(context, out.bytes));
    REFUSED(emx_resize(context, out.bytes, 1, &pointer));
    REFUSED(emx_migrate(context, out.bytes, 0, &pointer));
    REFUSED(emx_query(context, out.bytes, &out.allocation));
    REFUSED(emx_read(context, out.bytes, 0, out.bytes, 1));
    REFUSED(emx_write(context, out.bytes, 0, out.bytes, 1));
    REFUSED(emx_memset(context, out.bytes, 0, 0, 1));
    REFUSED(emx_copy(context, out.bytes, 0, out.bytes, 0, 1));
    REFUSED(emx_read_batch(context, &access, 1));
    REFUSED(emx_write_batch(context, &access, 1));
    REFUSED(emx_poison(context, 0, out.bytes, 64));
    REFUSED(emx_measure_reads(context, out.bytes, 1, 0, 2, samples));
    REFUSED(emx_engine_create(context, 1, &engine));
    emx_context_close(context);
}

static void (*const uses[])(void*) = {use_link, use_cache, use_engine, use_completion,
                                      use_pool, use_host,  use_region, use_context};

static void use_all(void* none) {
    for (size_t i = 0; i < sizeof uses / sizeof uses[0]; i++) uses[i](none);
}

/* ---- facts --------------------------------------------------------------------------------------------- */

static void null_is_refused(void) { use_all(NULL); }

static void what_is_no_object_is_refused(void) {
    static _Alignas(64) unsigned char garbage[65536];
    static const unsigned char fills[] = {0x00, 0xff, 0xa5};
    for (size_t i = 0; i < sizeof fills; i++) {
        memset(garbage, fills[i], sizeof garbage);
        use_all(garbage);
        for (size_t k = 0; k < sizeof garbage; k++) REQUIRE(garbage[k] == fills[i]);
    }
}

static emx_context* open_context(emx_tier* tier, emx_link* link) {
    const emx_context_config config = {.struct_bytes = sizeof config, .clock = EMX_CLOCK_VIRTUAL};
    const emx_tier_config tier_config = {
        .struct_bytes = sizeof tier_config, .name = "a", .capacity_bytes = MIB, .fd = -1, .link = link};
    emx_context* context;
    REQUIRE(emx_context_open(&config, &context) == EMX_OK);
    REQUIRE(emx_tier_add(context, &tier_config, tier) == EMX_OK);
    return context;
}

static emx_link* make_link(void) {
    const emx_link_config config = {
        .struct_bytes = sizeof config, .read_bandwidth_gbps = 1, .write_bandwidth_gbps = 1};
    emx_link* link;
    REQUIRE(emx_link_create(&config, &link) == EMX_OK);
    return link;
}

static void what_was_closed_is_refused(void) {
    static _Alignas(64) char memory[4096];
    emx_tier tier;
    emx_link* link = make_link();
    emx_context* context = open_context(&tier, link);
    emx_engine* engine;
    emx_completion* completion;
    emx_cache* cache;
    void* pointer;
    REQUIRE(emx_engine_create(context, 1, &engine) == EMX_OK &&
            emx_alloc(context, tier, 64, 0, &pointer) == EMX_OK);
    const emx_copy_request request = {pointer, memory, 64};
    REQUIRE(emx_engine_submit(engine, &request, 1, &completion) == EMX_OK);
    REQUIRE(emx_completion_wait(completion, UINT64_MAX) == EMX_OK);
    const emx_cache_config config = {
        .struct_bytes = sizeof config, .base = memory, .size_bytes = sizeof memory};
    REQUIRE(emx_cache_open(&config, &cache) == EMX_OK);
    emx_completion_release(completion);
    emx_engine_close(engine);
    emx_cache_close(cache);
    emx_link_close(link);
    for (int twice = 0; twice < 2; twice++)
        use_link(link), use_cache(cache), use_engine(engine), use_completion(completion);
    REQUIRE(emx_write(context, pointer, 0, memory, 64) == EMX_OK); /* the tier keeps its link */
    emx_context_close(context);
    use_context(context);
}

static void what_left_a_pool_is_refused(void) {
    char path[] = "/tmp/emucxl-handles-XXXXXX/pool";
    *strrchr(path, '/') = '\0';
    REQUIRE(mkdtemp(path) != NULL);
    path[strlen(path)] = '/';
    const emx_pool_config config = {.struct_bytes = sizeof config, .size_bytes = 4 * MIB};
    emx_pool* pool;
    emx_host* host;
    emx_region* region;
    REQUIRE(emx_pool_create(path, &config, &pool) == EMX_OK &&
            emx_pool_join(pool, "host", NULL, &host) == EMX_OK);
    REQUIRE(emx_host_carve(host, "tag", MIB, NULL, &region) == EMX_OK);
    emx_region_close(region);
    use_region(region);
    emx_host_leave(host);
    use_host(host);
    emx_pool_close(pool);
    use_pool(pool);
    unlink(path);
    *strrchr(path, '/') = '\0';
    rmdir(path);
}

static void places_and_configs_may_be_null(void) {
    emx_tier tier;
    emx_link* link = make_link();
    emx_context* context = open_context(&tier, link);
    static _Alignas(64) char memory[4096];
    emx_cache* cache;
    const emx_cache_config config = {
        .struct_bytes = sizeof config, .base = memory, .size_bytes = sizeof memory};
    REFUSED(emx_cache_open(&config, NULL));
    REFUSED(emx_cache_open(NULL, &cache));
    REQUIRE(emx_cache_open(&config, &cache) == EMX_OK);
    REFUSED(emx_cache_read(cache, 0, NULL, 1));
    REFUSED(emx_cache_write(cache, 0, NULL, 1));
    REFUSED(emx_cache_load_u64(cache, 0, NULL));
    REFUSED(emx_cache_get_stats(cache, NULL));
    emx_cache_close(cache);
    REFUSED(emx_context_open(NULL, NULL));
    REFUSED(emx_context_set_calibration(context, NULL));
    REFUSED(emx_tier_add(context, NULL, &tier));
    REFUSED(emx_tier_get_info(context, tier, NULL));
    REFUSED(emx_tier_get_stats(context, tier, NULL));
    REFUSED(emx_alloc(context, tier, 1, 0, NULL));
    REFUSED(emx_query(context, memory, NULL));
    REFUSED(emx_read_batch(context, NULL, 1));
    REFUSED(emx_write_batch(context, NULL, 1));
    REFUSED(emx_engine_create(context, 1, NULL));
    REFUSED(emx_link_create(NULL, &link));
    REFUSED(emx_link_attach(-1, NULL));
    REFUSED(emx_link_open(NULL, NULL, &link));
    REFUSED(emx_link_get_config(link, NULL));
    REFUSED(emx_link_get_stats(link, NULL));
    REFUSED(emx_link_reserve(link, EMX_READ, 1, 0, NULL));
    REFUSED(emx_calibrate(1, NULL));
    REFUSED(emx_check_timing(NULL, NULL));
    REFUSED(emx_resources_read(NULL, NULL));
    REFUSED(emx_pool_create(NULL, NULL, NULL));
    REFUSED(emx_pool_open(NULL, 0, NULL));
    REQUIRE(emx_provider_unavailable((emx_provider)99) != NULL);
    emx_link_close(link);
    emx_context_close(context);
}

static void the_published_calls_bear_null(void) {
    emucxl_exit();
    emucxl_free(NULL, 0);
    REQUIRE(emucxl_alloc(1, 0) == NULL && emucxl_resize(NULL, 0, 0, 1) == NULL &&
            emucxl_migrate(NULL, 0, 1) == NULL);
    emucxl_init();
    char byte = 0;
    REQUIRE(emucxl_resize(NULL, 0, 0, 1) == NULL && emucxl_migrate(NULL, 0, 1) == NULL);
    REQUIRE(!emucxl_read(NULL, 0, &byte, 1) && !emucxl_write(NULL, 0, &byte, 1) &&
            !emucxl_read(&byte, 0, NULL, 1));
    REQUIRE(emucxl_memset(NULL, 0, 0, 1) == NULL && emucxl_memcpy(NULL, &byte, 1) == NULL &&
            emucxl_memmove(&byte, NULL, 1) == NULL);
    REQUIRE(!emucxl_is_local(NULL) && emucxl_get_numa_node(NULL) == -1 && emucxl_get_size(NULL) == 0 &&
            emucxl_stats(-7) == 0);
    emucxl_exit();
}

static void these_never_fail(void) {
    REQUIRE(emx_abi_version() == EMX_ABI_VERSION && emx_status_name((emx_status)999) &&
            emx_status_text((emx_status)-1));
    emx_wait_until(emx_now_ns());
}

/* ---- the list ------------------------------------------------------------------------------------------ */

#define FACT(name) {#name, name}
static const struct {
    const char* name;
    void (*prove)(void);
} facts[] = {
    FACT(null_is_refused),
    FACT(what_is_no_object_is_refused),
    FACT(what_was_closed_is_refused),
    FACT(what_left_a_pool_is_refused),
    FACT(places_and_configs_may_be_null),
    FACT(the_published_calls_bear_null),
    FACT(these_never_fail),
};

int main(int count, char** arguments) {
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++) {
        if (count < 2) puts(facts[i].name);
        else if (strcmp(facts[i].name, arguments[1]) == 0) facts[i].prove();
    }
    return 0;
}
