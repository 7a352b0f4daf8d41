/* null: addresses without memory, to run everything but the bytes. */
#include "provider/provider.h"

static const char* unavailable(void) { return NULL; }

static emx_status null_open(const emx_tier_config* config, pages* pages) {
    const emx_status status = pages_require_capacity(config);
    return status != EMX_OK ? status
                            : pages_reserve(pages, pages_round_up(config->capacity_bytes), PAGES_ALIGNMENT);
}

const provider provider_null = {
    .name = "null",
    .unavailable = unavailable,
    .open = null_open,
    .close = pages_release,
};
