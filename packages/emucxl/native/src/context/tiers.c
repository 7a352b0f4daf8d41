/* Tiers: adding them to a context, and what they tell of themselves. */
#include <string.h>

#include "context/internal.h"
#include "fail.h"

emx_status tier_failed(const tier* tier, emx_status status) {
    char detail[400];
    strncpy(detail, emx_error_detail(), sizeof detail - 1);
    detail[sizeof detail - 1] = '\0';
    return fail(status, "tier '%s': %s", tier->name, detail);
}

emx_status tier_ask_guards(const tier* tier, const void* address, size_t size_bytes, bool write) {
    emx_status status = file_pages_check(&tier->pages);
    if (status == EMX_OK) status = path_check(tier->path);
    if (status != EMX_OK) return tier_failed(tier, status);
    if (tier->region == NULL) return EMX_OK;
    return emx_region_check_access(tier->region, (uint64_t)((const char*)address - tier->pages.base),
                                   size_bytes, write);
}

emx_status context_check_name(const char* what, const char* name) {
    if (name == NULL || name[0] == '\0')
        return fail(EMX_E_INVALID, "got no name for the %s; expected one, say \"local\"", what);
    if (strnlen(name, EMX_NAME_BYTES) == EMX_NAME_BYTES)
        return fail(EMX_E_INVALID, "got a %s name of %d bytes or more; expected at most %d", what,
                    EMX_NAME_BYTES, EMX_NAME_BYTES - 1);
    for (const char* at = name; *at != '\0'; at++)
        if ((unsigned char)*at < ' ' || *at == 127)
            return fail(EMX_E_INVALID,
                        "got a %s name with the control character 0x%02x; expected printable text", what,
                        *at);
    return EMX_OK;
}

static emx_status check_name(const emx_context* context, const char* name) {
    const emx_status status = context_check_name("tier", name);
    if (status != EMX_OK) return status;
    for (uint32_t i = 0; i < atomic_load(&context->num_tiers); i++)
        if (strcmp(context->tiers[i].name, name) == 0)
            return fail(EMX_E_EXISTS, "the context has a tier '%s' already; choose another name", name);
    return EMX_OK;
}

static emx_status check_config(const emx_context* context, const emx_tier_config* config,
                               const provider** found) {
    if (config == NULL) return fail(EMX_E_INVALID, "got NULL for the tier's config");
    if (config->struct_bytes != sizeof *config)
        return fail(EMX_E_INVALID,
                    "got emx_tier_config of %u bytes; expected %zu: set struct_bytes to its sizeof",
                    config->struct_bytes, sizeof *config);
    const emx_status status = check_name(context, config->name);
    if (status != EMX_OK) return status;
    *found = provider_of(config->provider);
    if (*found == NULL)
        return fail(EMX_E_INVALID, "got provider %u for tier '%s'; expected one of emx_provider",
                    config->provider, config->name);
    const char* reason = (*found)->unavailable();
    if (reason != NULL)
        return fail(EMX_E_UNAVAILABLE, "tier '%s': provider %s: %s", config->name, (*found)->name, reason);
    if (config->capacity_bytes > HEAP_MOST_BYTES)
        return fail(
            EMX_E_NO_MEMORY,
            "got a capacity of %llu bytes for tier '%s'; expected at most %llu: there are no more addresses",
            (unsigned long long)config->capacity_bytes, config->name, (unsigned long long)HEAP_MOST_BYTES);
    if (atomic_load(&context->num_tiers) == EMX_MAX_TIERS)
        return fail(EMX_E_INVALID,
                    "the context has %d tiers, the most there can be; open another one for tier '%s'",
                    EMX_MAX_TIERS, config->name);
    return EMX_OK;
}

/* Opens the tier's parts one after the other; undoes them all when one fails. */
static emx_status open_parts(emx_context* context, const emx_tier_config* config, tier* tier) {
    pages* pages = &tier->pages;
    emx_status status =
        path_create(&config->timing, config->link, context->has_calibration ? &context->calibration : NULL,
                    !context->clock.is_virtual, &tier->path);
    if (status != EMX_OK) return status;
    status = pages->provider->open(config, pages);
    if (status == EMX_OK) {
        status = heap_create(pages, &tier->heap);
        if (status != EMX_OK) pages->provider->close(pages);
    }
    if (status != EMX_OK && tier->path != NULL) path_destroy(tier->path);
    if (status == EMX_OK && tier->path != NULL && !context->clock.is_virtual)
        atomic_store_explicit(&context->clock.is_paced, true, memory_order_relaxed);
    return status;
}

static void publish(emx_context* context, tier* tier, const emx_tier_config* config) {
    tier->touchable = tier->pages.touchable;
    tier->region = tier->pages.region;
    tier->is_guarded = tier->region != NULL || tier->pages.guard.is_needed || path_may_shrink(tier->path);
    tier->timing = config->timing;
    monitor_add_tier(context, tier);
    tier->monitor->provider = config->provider;
    context->ranges[tier->number] = (range){(uintptr_t)tier->pages.base, tier->pages.capacity_bytes};
    /* Release: pairs with the acquire of context_tier_of and context_get_tier, and of processes that look at
     * the page. */
    atomic_store_explicit(&context->num_tiers, tier->number + 1, memory_order_release);
    __atomic_store_n(&context->monitor->num_tiers, tier->number + 1, __ATOMIC_RELEASE);
}

static emx_status add_locked(emx_context* context, const emx_tier_config* config, emx_tier* number) {
    const provider* provider = NULL;
    emx_status status = check_config(context, config, &provider);
    if (status != EMX_OK) return status;
    tier* tier = &context->tiers[atomic_load(&context->num_tiers)];
    memset(tier, 0, sizeof *tier);
    tier->number = atomic_load(&context->num_tiers);
    memcpy(tier->name, config->name, strlen(config->name) + 1); /* check_name measured it */
    tier->pages.provider = provider;
    tier->pages.fd = tier->pages.numa_node = -1;
    status = open_parts(context, config, tier);
    if (status != EMX_OK) {
        status = tier_failed(tier, status);
        tier->name[0] = '\0';
        return status;
    }
    publish(context, tier, config);
    *number = tier->number;
    return EMX_OK;
}

emx_status emx_tier_add(emx_context* context, const emx_tier_config* config, emx_tier* number) {
    emx_status status = context_require(context);
    if (status != EMX_OK) return status;
    if (number == NULL) return fail(EMX_E_INVALID, "got NULL for where the tier's number goes");
    pthread_mutex_lock(&context->adding);
    status = add_locked(context, config, number);
    pthread_mutex_unlock(&context->adding);
    return status;
}

uint32_t emx_tier_count(const emx_context* context) {
    return context_require(context) == EMX_OK ? atomic_load(&context->num_tiers) : 0;
}

emx_status context_get_tier(const emx_context* context, emx_tier number, tier** found) {
    const emx_status status = context_require(context);
    if (status != EMX_OK) return status;
    const uint32_t num_tiers = atomic_load_explicit(&context->num_tiers, memory_order_acquire);
    if (number >= num_tiers)
        return fail(EMX_E_INVALID, "got tier %u; expected less than %u, the tiers of the context", number,
                    num_tiers);
    *found = (tier*)&context->tiers[number];
    return EMX_OK;
}

emx_status emx_tier_get_info(const emx_context* context, emx_tier number, emx_tier_info* info) {
    tier* tier = NULL;
    const emx_status status = context_get_tier(context, number, &tier);
    if (status != EMX_OK) return status;
    if (info == NULL) return fail(EMX_E_INVALID, "got NULL for where the tier's info goes");
    *info = (emx_tier_info){
        .provider = tier->monitor->provider,
        .numa_node = tier->pages.numa_node,
        .capacity_bytes = tier->pages.capacity_bytes,
        .base = tier->pages.base,
        .fd = tier->pages.fd,
        .modelled = tier->path != NULL,
        .timing = tier->timing,
    };
    memcpy(info->name, tier->name, sizeof info->name);
    return EMX_OK;
}

emx_status emx_tier_get_stats(const emx_context* context, emx_tier number, emx_tier_stats* stats) {
    tier* tier = NULL;
    const emx_status status = context_get_tier(context, number, &tier);
    if (status != EMX_OK) return status;
    if (stats == NULL) return fail(EMX_E_INVALID, "got NULL for where the tier's stats go");
    heap_stats heap;
    heap_get_stats(tier->heap, &heap);
    *stats = (emx_tier_stats){
        .capacity_bytes = tier->pages.capacity_bytes,
        .allocated_bytes = heap.allocated_bytes,
        .reserved_bytes = heap.reserved_bytes,
        .num_allocations = heap.num_allocations,
        .total_allocations = heap.total_allocations,
        .peak_reserved_bytes = heap.peak_reserved_bytes,
        .poisoned_bytes = heap.poisoned_bytes,
    };
    monitor_sum(tier, stats);
    tier_show(tier);
    return EMX_OK;
}

emx_status emx_tier_trim(emx_context* context, emx_tier number) {
    tier* tier = NULL;
    emx_status status = context_get_tier(context, number, &tier);
    if (status != EMX_OK) return status;
    status = heap_trim(tier->heap);
    tier_show(tier);
    return status == EMX_OK ? EMX_OK : tier_failed(tier, status);
}

emx_status emx_context_check(emx_context* context) {
    emx_status status = context_require(context);
    if (status != EMX_OK) return status;
    for (uint32_t i = 0; i < atomic_load(&context->num_tiers); i++) {
        status = heap_check(context->tiers[i].heap);
        if (status != EMX_OK) return tier_failed(&context->tiers[i], status);
    }
    return EMX_OK;
}
