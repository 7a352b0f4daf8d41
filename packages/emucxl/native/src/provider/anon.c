/* anon: this process's own memory. Huge pages where the system lets them be asked for. */
#include "fail.h"
#include "prim/memory.h"
#include "provider/provider.h"

static const char* unavailable(void) { return NULL; }

static emx_status anon_open(const emx_tier_config* config, pages* pages) {
    emx_status status = pages_require_capacity(config);
    if (status == EMX_OK)
        status = pages_reserve(pages, pages_round_up(config->capacity_bytes), PAGES_ALIGNMENT);
    if (status != EMX_OK) return status;
    memory_advise_huge(pages->base, pages->capacity_bytes);
    pages->fresh_is_zero = pages->touchable = true;
    status = pages_promise(pages);
    if (status != EMX_OK) pages_release(pages);
    return status;
}

static emx_status anon_commit(pages* pages, size_t offset, size_t size_bytes) {
    const emx_status status = pages_check_growth(pages, size_bytes);
    return status != EMX_OK ? status : pages_enable(pages, offset, size_bytes);
}

const provider provider_anon = {
    .name = "anon",
    .unavailable = unavailable,
    .open = anon_open,
    .close = pages_release,
    .resident = pages_resident,
    .commit = anon_commit,
    .decommit = pages_discard,
};
