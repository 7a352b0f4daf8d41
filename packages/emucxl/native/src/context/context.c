/* Contexts: opening, closing, the clock, and finding what a pointer points to. */
#include <stdlib.h>
#include <string.h>

#include "context/internal.h"
#include "fail.h"

static emx_status check_config(const emx_context_config* config) {
    if (config->struct_bytes != sizeof *config)
        return fail(EMX_E_INVALID,
                    "got emx_context_config of %u bytes; expected %zu: set struct_bytes to its sizeof",
                    config->struct_bytes, sizeof *config);
    if (config->clock > EMX_CLOCK_VIRTUAL)
        return fail(EMX_E_INVALID, "got clock %u; expected EMX_CLOCK_REAL or EMX_CLOCK_VIRTUAL",
                    config->clock);
    if (config->calibration != NULL && config->calibration->struct_bytes != sizeof(emx_calibration))
        return fail(EMX_E_INVALID,
                    "got emx_calibration of %u bytes; expected %zu, as emx_calibrate fills it in",
                    config->calibration->struct_bytes, sizeof(emx_calibration));
    return EMX_OK;
}

emx_status emx_context_open(const emx_context_config* config, emx_context** opened) {
    if (opened == NULL)
        return fail(EMX_E_INVALID, "got NULL for where the context goes; expected its address");
    emx_status status = config != NULL ? check_config(config) : EMX_OK;
    if (status != EMX_OK) return status;
    emx_context* context = context_take_memory();
    if (context == NULL)
        return fail(EMX_E_NO_MEMORY, "no memory for a context of %zu bytes", sizeof *context);
    context->clock.is_virtual = config != NULL && config->clock == EMX_CLOCK_VIRTUAL;
    if (config != NULL && config->calibration != NULL) {
        context->has_calibration = true;
        context->calibration = *config->calibration;
        if (!context->clock.is_virtual)
            context->clock.exit_overhead_ns = config->calibration->exit_overhead_ns;
    }
    status = monitor_open(context, context->clock.is_virtual ? EMX_CLOCK_VIRTUAL : EMX_CLOCK_REAL);
    if (status != EMX_OK) {
        context_keep_memory(context);
        return status;
    }
    pthread_mutex_init(&context->adding, NULL);
    pin_table_init(&context->pins);
    context->magic = CONTEXT_OPEN;
    context_list(context);
    *opened = context;
    return EMX_OK;
}

void emx_context_close(emx_context* context) {
    if (context == NULL || context->magic != CONTEXT_OPEN) return;
    context_unlist(context);
    context->magic = 0;
    for (uint32_t i = 0; i < atomic_load(&context->num_tiers); i++) {
        tier* tier = &context->tiers[i];
        heap_destroy(tier->heap);
        if (tier->path != NULL) path_destroy(tier->path);
        tier->pages.provider->close(&tier->pages);
    }
    monitor_close(context);
    pin_table_destroy(&context->pins);
    pthread_mutex_destroy(&context->adding);
    context_keep_memory(context);
}

emx_status context_refuse(const emx_context* context) {
    if (context == NULL)
        return fail(EMX_E_INVALID, "got NULL for the context; expected one of emx_context_open");
    return fail(EMX_E_CLOSED, "the context was closed; open another one");
}

uint64_t emx_context_now_ns(const emx_context* context) {
    return context_require(context) == EMX_OK ? model_clock_now(&context->clock) : 0;
}

void emx_context_advance(emx_context* context, uint64_t duration_ns) {
    if (context_require(context) != EMX_OK) return;
    const uint64_t now_ns = model_clock_now(&context->clock);
    model_clock_reach(&context->clock, duration_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + duration_ns);
}

emx_status context_find(const emx_context* context, const void* pointer, tier** found, heap_block* block) {
    tier* tier = context_tier_of(context, pointer);
    if (tier == NULL)
        return fail(EMX_E_BAD_POINTER,
                    "got %p, which is in no tier of this context; expected what emx_alloc gave", pointer);
    *found = tier;
    const emx_status status = heap_query(tier->heap, pointer, block);
    return status == EMX_OK ? EMX_OK : tier_failed(tier, status);
}

emx_status tier_poisoned(const tier* tier, const void* address, size_t size_bytes, const void* bad) {
    return fail(EMX_E_POISONED,
                "tier '%s': the access of %zu bytes meets poison %zu bytes in (the 64-byte line at %p); "
                "expected good "
                "memory: free the allocation and build its bytes anew",
                tier->name, size_bytes, bad > address ? (size_t)((const char*)bad - (const char*)address) : 0,
                bad);
}
