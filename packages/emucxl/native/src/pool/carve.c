/* Carving a region: a slot, a tag that is nobody else's, extents.
 *
 * Two hosts that carve one tag at once settle it without a lock. Each publishes its tag (naming -> named),
 * then looks at all others. A host that sees a live or filling region of its tag gives up. Of two that are
 * named, the one in the lower slot strikes the other (named -> dying), and the one in the higher slot gives
 * up. Whichever published later sees the other, so at most one goes on to fill.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "pool/internal.h"
#include "prim/file.h"

static const uint64_t DEFAULT_MAX_BYTES = UINT64_C(64) << 30;

typedef struct carving {
    emx_host* host;
    const char* tag;
    uint64_t size_bytes, max_bytes;
    uint32_t flags, sharing;
    uint32_t slot;
    uint64_t word; /* of the region, as this host last wrote it */
} carving;

static region_record* record_of(const carving* carve) { return &carve->host->pool->regions[carve->slot]; }

/* Goes on to the next state, unless the region was taken away. */
static bool advance(carving* carve, unsigned state) {
    const uint64_t next = with_region_state(carve->word, state);
    if (!shared_swap(&record_of(carve)->word, carve->word, next)) return false;
    carve->word = next;
    return true;
}

static emx_status abandon(carving* carve, emx_status status) {
    advance(carve, REGION_DYING);
    region_bury(carve->host->pool, carve->slot);
    return status;
}

static emx_status take_slot(carving* carve) {
    const emx_host* host = carve->host;
    for (carve->slot = 0; carve->slot < host->pool->header.max_regions; carve->slot++) {
        const uint64_t word = shared_load(&record_of(carve)->word);
        if (region_state(word) != REGION_FREE) continue;
        carve->word = with_region_state(word, REGION_NAMING);
        carve->word = with_region_worker(carve->word, host->slot);
        carve->word = with_region_epoch(carve->word, host->epoch);
        carve->word = with_region_persistent(carve->word, (carve->flags & EMX_CARVE_PERSISTENT) != 0);
        if (shared_swap(&record_of(carve)->word, word, carve->word)) return EMX_OK;
    }
    return fail(EMX_E_POOL_FULL,
                "all %u regions of the pool are in use; make pools with a larger max_regions",
                host->pool->header.max_regions);
}

static void write_record(const carving* carve) {
    region_record* record = record_of(carve);
    const uint32_t gen = (uint32_t)region_gen(carve->word);
    text_store(record->tag, carve->tag);
    shared_store(&record->size_bytes, carve->size_bytes);
    shared_store(&record->max_bytes, carve->max_bytes);
    shared_store(&record->sharing, carve->sharing);
    shared_store(&record->owner, owner_word(carve->host, gen));
    shared_store(&record->holders[carve->host->slot], holder_word(carve->host, gen, true));
}

/* The region in `slot`, if it bears the tag; its word in `*word`. */
static bool bears_tag(const carving* carve, uint32_t slot, uint64_t* word) {
    const region_record* record = &carve->host->pool->regions[slot];
    char tag[EMX_TAG_BYTES];
    do {
        *word = shared_load(&record->word);
        if (region_state(*word) < REGION_NAMED || region_state(*word) > REGION_RESIZING) return false;
        text_load(record->tag, tag);
    } while (region_gen(shared_load(&record->word)) != region_gen(*word));
    return strcmp(tag, carve->tag) == 0;
}

static emx_status beat_rivals(const carving* carve) {
    emx_pool* pool = carve->host->pool;
    for (uint32_t slot = 0; slot < pool->header.max_regions; slot++) {
        uint64_t word;
        while (slot != carve->slot && bears_tag(carve, slot, &word)) {
            if (region_state(word) != REGION_NAMED || slot < carve->slot)
                return fail(EMX_E_EXISTS, "the pool has a region \"%s\"; open it, or choose another tag",
                            carve->tag);
            if (shared_swap(&pool->regions[slot].word, word, with_region_state(word, REGION_DYING)))
                region_bury(pool, slot);
        }
    }
    return EMX_OK;
}

static emx_status check_quota(const carving* carve) {
    const emx_host* host = carve->host;
    const uint64_t wanted_bytes =
        extents_for(host->pool, carve->size_bytes) * host->pool->header.extent_bytes;
    const uint64_t owned_bytes = host_owned_bytes(host->pool, host->slot, host->epoch);
    if (!host->quota_bytes || owned_bytes + wanted_bytes <= host->quota_bytes) return EMX_OK;
    return fail(EMX_E_QUOTA,
                "%" PRIu64 " bytes beside the %" PRIu64 " it owns would exceed the host's quota of %" PRIu64,
                wanted_bytes, owned_bytes, host->quota_bytes);
}

static emx_status fill(carving* carve, emx_region** made) {
    emx_region* region;
    emx_status status = region_make(carve->host, carve->slot, (uint32_t)region_gen(carve->word), carve->tag,
                                    carve->max_bytes, &region);
    if (status) return status;
    region->writable = true;
    status = extents_add(region, 0, extents_for(carve->host->pool, carve->size_bytes));
    if (!status) status = host_require_active(carve->host);
    if (!status && !advance(carve, REGION_LIVE))
        status = fail(EMX_E_FENCED, "this host was taken for dead while it carved");
    if (status) {
        region_destroy(region);
        return status;
    }
    atomic_store(&region->size_bytes, carve->size_bytes);
    *made = region;
    return EMX_OK;
}

/* Why somebody else changed the region's word: a rival struck it out, or this host was taken for dead. */
static emx_status explain_loss(const carving* carve) {
    const emx_status status = host_require_active(carve->host);
    return status ? status : fail(EMX_E_EXISTS, "another host carves \"%s\" at this moment", carve->tag);
}

static emx_status carve_locked(carving* carve, emx_region** carved) {
    emx_status status = host_require_active(carve->host);
    if (status) return status;
    reclaim(carve->host->pool, 0, NULL);
    status = check_quota(carve);
    if (!status) status = take_slot(carve);
    if (status) return status;
    write_record(carve);
    if (!advance(carve, REGION_NAMED)) return abandon(carve, explain_loss(carve));
    status = beat_rivals(carve);
    if (!status && !advance(carve, REGION_FILLING)) status = explain_loss(carve);
    if (!status) status = fill(carve, carved);
    if (status) return abandon(carve, status);
    region_list(*carved);
    return EMX_OK;
}

static emx_status check_carve(const emx_pool* pool, uint64_t size_bytes, const emx_carve_config* config) {
    const uint64_t pool_bytes = pool->header.num_extents * pool->header.extent_bytes;
    if (config->struct_bytes != sizeof *config)
        return fail(EMX_E_INVALID, "got struct_bytes=%u; expected %zu", config->struct_bytes, sizeof *config);
    if (config->flags & ~(uint32_t)EMX_CARVE_PERSISTENT || config->sharing > EMX_SHARE_NONE)
        return fail(EMX_E_INVALID,
                    "got flags=%#x and sharing=%u; expected flags of emx_carve_flag and an emx_sharing",
                    config->flags, config->sharing);
    if (size_bytes == 0) return fail(EMX_E_INVALID, "got size_bytes=0; expected at least 1");
    if (config->max_bytes && config->max_bytes < size_bytes)
        return fail(EMX_E_INVALID, "got max_bytes=%" PRIu64 " below size_bytes=%" PRIu64, config->max_bytes,
                    size_bytes);
    if (size_bytes > pool_bytes)
        return fail(EMX_E_POOL_FULL, "got size_bytes=%" PRIu64 "; the whole pool has %" PRIu64, size_bytes,
                    pool_bytes);
    return EMX_OK;
}

static uint64_t room_for(const emx_pool* pool, uint64_t size_bytes, uint64_t max_bytes) {
    const uint64_t pool_bytes = pool->header.num_extents * pool->header.extent_bytes;
    if (max_bytes == 0) max_bytes = size_bytes > DEFAULT_MAX_BYTES ? size_bytes : DEFAULT_MAX_BYTES;
    return max_bytes < pool_bytes ? max_bytes : pool_bytes;
}

emx_status emx_host_carve(emx_host* host, const char* tag, uint64_t size_bytes,
                          const emx_carve_config* config, emx_region** carved) {
    const emx_carve_config plain = {.struct_bytes = sizeof plain};
    if (!config) config = &plain;
    emx_status status = handle_require(HANDLE_HOST, host);
    if (!status && !carved) status = fail(EMX_E_INVALID, "got nowhere to put the region");
    if (status) return status;
    status = pool_is_inherited(host->pool) ? host_require_active(host) : text_check(tag, "tag");
    if (!status) status = check_carve(host->pool, size_bytes, config);
    if (status) return status;
    carving carve = {.host = host,
                     .tag = tag,
                     .size_bytes = size_bytes,
                     .flags = config->flags,
                     .sharing = config->sharing,
                     .max_bytes = room_for(host->pool, size_bytes, config->max_bytes)};
    pthread_mutex_lock(&host->lock);
    status = carve_locked(&carve, carved);
    if (status == EMX_E_FENCED) host_surrender(host);
    pthread_mutex_unlock(&host->lock);
    return status;
}
