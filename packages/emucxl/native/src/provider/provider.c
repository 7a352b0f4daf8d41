#include "provider/provider.h"

#include "fail.h"
#include "prim/memory.h"

static const provider* const providers[] = {
    [EMX_PROVIDER_ANON] = &provider_anon, [EMX_PROVIDER_SHM] = &provider_shm,
    [EMX_PROVIDER_NUMA] = &provider_numa, [EMX_PROVIDER_DAX] = &provider_dax,
    [EMX_PROVIDER_NULL] = &provider_null, [EMX_PROVIDER_REGION] = &provider_region,
};

const provider* provider_of(uint32_t number) {
    return number < sizeof providers / sizeof providers[0] ? providers[number] : NULL;
}

const char* emx_provider_unavailable(emx_provider number) {
    const provider* found = provider_of((uint32_t)number);
    return found != NULL ? found->unavailable() : "there is no such provider";
}

emx_status pages_require_capacity(const emx_tier_config* config) {
    if (config->capacity_bytes > 0) return EMX_OK;
    return fail(EMX_E_INVALID, "got a capacity of 0 bytes for tier '%s'; expected the bytes that it may hold",
                config->name);
}

size_t pages_round_up(size_t size_bytes) {
    const size_t page = memory_page_bytes();
    return (size_bytes + page - 1) / page * page;
}

emx_status pages_reserve(pages* pages, size_t capacity_bytes, size_t alignment) {
    void* base;
    const int error_number = memory_reserve(capacity_bytes, alignment, &base);
    if (error_number != 0)
        return fail_system(error_number, "cannot reserve %zu bytes of addresses", capacity_bytes);
    pages->base = base;
    pages->capacity_bytes = capacity_bytes;
    return EMX_OK;
}

void pages_release(pages* pages) {
    pages_withdraw(pages);
    if (pages->base != NULL) memory_release(pages->base, pages->capacity_bytes);
    pages->base = NULL;
}

/* ---- private pages ------------------------------------------------------------------------------------- */

/* Before the range can be touched, so that a look at the pages never leaves any of it out. */
static void reach(pages* pages, size_t end) {
    size_t reached = atomic_load_explicit(&pages->reached_bytes, memory_order_relaxed);
    while (reached < end &&
           !atomic_compare_exchange_weak_explicit(&pages->reached_bytes, &reached, end, memory_order_relaxed,
                                                  memory_order_relaxed))
        continue;
}

emx_status pages_enable(pages* pages, size_t offset, size_t size_bytes) {
    reach(pages, offset + size_bytes);
    const int error_number = memory_enable(pages->base + offset, size_bytes);
    if (error_number == 0) return EMX_OK;
    return fail_system(error_number, "the system refused %zu more bytes of memory", size_bytes);
}

emx_status pages_discard(pages* pages, size_t offset, size_t size_bytes) {
    const int error_number = memory_discard(pages->base + offset, size_bytes);
    if (error_number != 0)
        return fail_system(error_number, "cannot give %zu bytes of memory back", size_bytes);
    return EMX_OK;
}

size_t pages_resident(const pages* pages) {
    const size_t reached = atomic_load_explicit(&pages->reached_bytes, memory_order_relaxed);
    size_t resident_bytes = 0;
    if (reached > 0) (void)memory_resident(pages->base, reached, &resident_bytes);
    return resident_bytes;
}
