/* The cost of a cache's accesses: modelled, on the clock of its context. */
#include <math.h>

#include "coherence/internal.h"
#include "context/internal.h"

emx_status price_open(emx_cache* cache) {
    const emx_cache_config* config = &cache->config;
    if (config->context == NULL) return EMX_OK;
    const emx_status open = context_require(config->context);
    if (open != EMX_OK) return open;
    return path_create(&config->timing, config->link,
                       config->context->has_calibration ? &config->context->calibration : NULL,
                       !config->context->clock.is_virtual, &cache->path);
}

void price_close(emx_cache* cache) {
    if (cache->path != NULL) path_destroy(cache->path);
}

static uint64_t charge_traffic(emx_cache* cache, cache_traffic traffic) {
    if (cache->path == NULL) return 0;
    transfer transfers[2];
    size_t count = 0;
    if (traffic.fetched_bytes > 0)
        transfers[count++] = (transfer){.size_bytes = traffic.fetched_bytes, .read_path = cache->path};
    if (traffic.written_bytes > 0)
        transfers[count++] = (transfer){.size_bytes = traffic.written_bytes, .write_path = cache->path};
    return transfer_run(&cache->config.context->clock, transfers, count);
}

static uint64_t charge_hit(emx_cache* cache) {
    const uint64_t latency_ns = (uint64_t)llround(cache->config.hit_latency_ns);
    if (latency_ns > 0) emx_context_advance(cache->config.context, latency_ns);
    return latency_ns;
}

void price_charge(emx_cache* cache, cache_traffic traffic) {
    if (cache->config.context == NULL) return;
    const bool is_hit = traffic.fetched_bytes == 0 && traffic.written_bytes == 0;
    const uint64_t delayed_ns = is_hit ? charge_hit(cache) : charge_traffic(cache, traffic);
    if (delayed_ns == 0) return;
    pthread_mutex_lock(&cache->lock);
    cache->stats.delayed_ns += delayed_ns;
    pthread_mutex_unlock(&cache->lock);
}
