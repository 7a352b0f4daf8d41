/* Opening, resizing and letting go of regions; carving them is in pool/carve.c. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "pool/internal.h"
#include "prim/file.h"

enum { OPEN_POLLS = 2000, OPEN_POLL_NS = 500000 };

/* ---- words --------------------------------------------------------------------------------------------- */

uint64_t holder_word(const emx_host* host, uint32_t gen, bool writable) {
    uint64_t word = with_holder_mode(0, writable ? HOLDER_WRITES : HOLDER_READS);
    word = with_holder_epoch(word, host->epoch);
    return with_holder_gen(word, gen);
}

uint64_t owner_word(const emx_host* host, uint32_t gen) {
    uint64_t word = with_owner_valid(0, 1);
    word = with_owner_slot(word, host->slot);
    word = with_owner_epoch(word, host->epoch);
    return with_owner_gen(word, gen);
}

bool owner_holds(const emx_pool* pool, uint64_t owner, uint64_t gen) {
    return owner_valid(owner) && owner_gen(owner) == gen &&
           host_may_hold(pool, (uint32_t)owner_slot(owner), owner_epoch(owner), owner_epoch_WIDTH);
}

static bool is_live(uint64_t word, uint32_t gen) {
    const unsigned state = region_state(word);
    return (state == REGION_LIVE || state == REGION_RESIZING) && region_gen(word) == gen;
}

/* Lets go of a region, in the order in which a clean-up would go on. */
static void let_go(emx_host* host, uint32_t slot, uint32_t gen) {
    region_record* record = &host->pool->regions[slot];
    const uint64_t holder = shared_load(&record->holders[host->slot]);
    shared_swap(&record->owner, owner_word(host, gen), 0);
    if (holder_gen(holder) == gen && holder_epoch(holder) == host->epoch)
        shared_swap(&record->holders[host->slot], holder, 0);
    region_settle(host->pool, slot);
}

/* ---- opening ------------------------------------------------------------------------------------------- */

/* The live region of that tag. A tag is read between two looks at the word, which tell whether it was the
 * same region. */
static bool find_live(const emx_pool* pool, const char* tag, uint32_t* slot, uint64_t* word) {
    char found[EMX_TAG_BYTES];
    for (*slot = 0; *slot < pool->header.max_regions; (*slot)++) {
        const region_record* record = &pool->regions[*slot];
        *word = shared_load(&record->word);
        if (region_state(*word) != REGION_LIVE && region_state(*word) != REGION_RESIZING) continue;
        text_load(record->tag, found);
        if (strcmp(found, tag) == 0 && is_live(shared_load(&record->word), (uint32_t)region_gen(*word)))
            return true;
    }
    return false;
}

/* Takes a region that has no owner, if this host's quota allows. */
static emx_status adopt(emx_host* host, region_record* record, uint32_t gen) {
    emx_pool* pool = host->pool;
    /* With what it was adding to the region. */
    region_drop_dead_owner(pool, (uint32_t)(record - pool->regions));
    const uint64_t owner = shared_load(&record->owner);
    if (owner == owner_word(host, gen)) return EMX_OK;
    if (owner_holds(pool, owner, gen))
        return fail(EMX_E_PERMISSION, "host %u owns it; only an owner may do this",
                    (unsigned)owner_slot(owner));
    const uint64_t size_bytes =
        extents_for(pool, shared_load(&record->size_bytes)) * pool->header.extent_bytes;
    const uint64_t owned_bytes = host_owned_bytes(pool, host->slot, host->epoch);
    if (host->quota_bytes && owned_bytes + size_bytes > host->quota_bytes)
        return fail(EMX_E_QUOTA,
                    "owning this region of %" PRIu64 " bytes beside the %" PRIu64
                    " it owns would exceed the host's "
                    "quota of %" PRIu64,
                    size_bytes, owned_bytes, host->quota_bytes);
    if (!shared_swap(&record->owner, owner, owner_word(host, gen)))
        return fail(EMX_E_PERMISSION, "another host became its owner just now");
    return EMX_OK;
}

/* May this host hold the region in this mode? If it has to own it for that, it does afterwards. */
static emx_status admit(emx_host* host, region_record* record, uint32_t gen, bool writable) {
    const uint64_t sharing = shared_load(&record->sharing);
    const bool owned = owner_holds(host->pool, shared_load(&record->owner), gen);
    const bool must_own = sharing == EMX_SHARE_NONE || (sharing == EMX_SHARE_READ && writable);
    if (!must_own && (!writable || owned)) return EMX_OK;
    const emx_status status = adopt(host, record, gen);
    return status == EMX_E_PERMISSION && !must_own ? EMX_OK : status; /* another host was faster */
}

static emx_status map_whole(emx_region* region) {
    const emx_pool* pool = region->host->pool;
    const uint64_t size_bytes = shared_load(&region->record->size_bytes);
    if (size_bytes == 0 || size_bytes > region->room_bytes)
        return fail(EMX_E_CORRUPT, "region \"%s\" has %" PRIu64 " bytes in room for %" PRIu64, region->tag,
                    size_bytes, region->room_bytes);
    const uint32_t count = extents_for(pool, size_bytes);
    emx_status status =
        extents_find(pool, region->slot, region->gen, region->mapped_extents, count, region->extents);
    if (!status) status = extents_map(region, region->mapped_extents, count, region->writable);
    if (status) return status;
    region->mapped_extents = count;
    atomic_store(&region->size_bytes, size_bytes);
    return EMX_OK;
}

static emx_status map_held(emx_host* host, uint32_t slot, uint32_t gen, const char* tag, bool writable,
                           emx_region** opened) {
    const emx_pool* pool = host->pool;
    const uint64_t max_bytes = shared_load(&pool->regions[slot].max_bytes);
    emx_region* region;
    if (max_bytes == 0 || max_bytes > pool->header.num_extents * pool->header.extent_bytes)
        return fail(EMX_E_CORRUPT, "region \"%s\" may grow to %" PRIu64 " bytes, which the pool doesn't have",
                    tag, max_bytes);
    emx_status status = region_make(host, slot, gen, tag, max_bytes, &region);
    if (status) return status;
    region->writable = writable;
    status = map_whole(region);
    if (!status) status = host_require_active(host);
    if (status) region_destroy(region);
    else *opened = region;
    return status;
}

/* EMX_E_BUSY: the region changed meanwhile, look again. */
static emx_status try_open(emx_host* host, const char* tag, bool writable, emx_region** opened) {
    uint32_t slot;
    uint64_t word;
    if (!find_live(host->pool, tag, &slot, &word))
        return fail(EMX_E_NOT_FOUND, "the pool has no region \"%s\"", tag);
    region_record* record = &host->pool->regions[slot];
    const uint32_t gen = (uint32_t)region_gen(word);
    const uint64_t before = shared_load(&record->holders[host->slot]);
    if (holder_gen(before) == gen && holder_epoch(before) == host->epoch && holder_mode(before))
        return fail(EMX_E_EXISTS, "this host has region \"%s\" open already", tag);
    if (region_state(word) == REGION_RESIZING)
        return fail(EMX_E_BUSY, "region \"%s\" is being shrunk by its owner", tag);
    emx_status status = admit(host, record, gen, writable);
    if (status) return status;
    shared_store(&record->holders[host->slot], holder_word(host, gen, writable));
    /* From here on nobody frees it: who found no holder before this word's new version fails to, and who
     * looks later sees one. */
    if (!shared_swap(&record->word, word, with_region_version(word, region_version(word) + 1)))
        status = fail(EMX_E_BUSY, "region \"%s\" changes all the time", tag);
    if (!status) status = map_held(host, slot, gen, tag, writable, opened);
    if (status) let_go(host, slot, gen);
    return status;
}

static emx_status open_locked(emx_host* host, const char* tag, bool writable, emx_region** opened) {
    emx_status status = host_require_active(host);
    if (status) return status;
    reclaim(host->pool, 0, NULL);
    for (int poll = 0; poll < OPEN_POLLS; poll++) {
        status = try_open(host, tag, writable, opened);
        if (status != EMX_E_BUSY) break;
        process_sleep_ns(OPEN_POLL_NS);
        reclaim(host->pool, 0, NULL);
    }
    if (!status) region_list(*opened);
    return status;
}

emx_status emx_host_open(emx_host* host, const char* tag, bool writable, emx_region** opened) {
    emx_status status = handle_require(HANDLE_HOST, host);
    if (!status && !opened) status = fail(EMX_E_INVALID, "got nowhere to put the region");
    if (status) return status;
    status = pool_is_inherited(host->pool) ? host_require_active(host) : text_check(tag, "tag");
    if (status) return status;
    pthread_mutex_lock(&host->lock);
    status = open_locked(host, tag, writable, opened);
    if (status == EMX_E_FENCED) host_surrender(host);
    pthread_mutex_unlock(&host->lock);
    return status;
}

emx_status region_follow(emx_region* region) {
    emx_host* host = region->host;
    pthread_mutex_lock(&host->lock);
    emx_status status =
        host->unmapped ? fail(EMX_E_FENCED, "the lease of host %u ran out", host->slot) : EMX_OK;
    if (!status && shared_load(&region->record->size_bytes) > atomic_load(&region->size_bytes) &&
        is_live(shared_load(&region->record->word), region->gen))
        status = map_whole(region);
    pthread_mutex_unlock(&host->lock);
    return status;
}

/* ---- resizing ------------------------------------------------------------------------------------------ */

static emx_status grow(emx_region* region, uint64_t old_bytes, uint64_t new_bytes) {
    emx_host* host = region->host;
    const uint64_t extent_bytes = host->pool->header.extent_bytes;
    const uint32_t old_count = extents_for(host->pool, old_bytes),
                   new_count = extents_for(host->pool, new_bytes);
    const uint64_t added_bytes = (new_count - old_count) * extent_bytes;
    const uint64_t owned_bytes = host_owned_bytes(host->pool, host->slot, host->epoch);
    if (host->quota_bytes && owned_bytes + added_bytes > host->quota_bytes)
        return fail(EMX_E_QUOTA,
                    "%" PRIu64 " more bytes beside the %" PRIu64
                    " it owns would exceed the host's quota of %" PRIu64,
                    added_bytes, owned_bytes, host->quota_bytes);
    /* Somebody may have written past the old size: its last extent is mapped whole. */
    const uint64_t tail_end = new_bytes < old_count * extent_bytes ? new_bytes : old_count * extent_bytes;
    memset(region->base + old_bytes, 0, tail_end - old_bytes);
    emx_status status = extents_add(region, old_count, new_count);
    if (status) return status;
    status = host_require_active(host);
    if (!status && shared_swap(&region->record->size_bytes, old_bytes, new_bytes)) {
        atomic_store(&region->size_bytes, new_bytes);
        return EMX_OK;
    }
    region->mapped_extents = old_count;
    address_forbid(region->base + old_count * extent_bytes, added_bytes);
    extents_give_back(host->pool, region->slot, region->gen, old_count, NULL, 0);
    return status ? status
                  : fail(EMX_E_CORRUPT, "the size of region \"%s\" changed under its owner", region->tag);
}

static bool others_hold(const emx_region* region) {
    const emx_pool* pool = region->host->pool;
    for (uint32_t slot = 0; slot < POOL_HOSTS; slot++) {
        const uint64_t holder = shared_load(&region->record->holders[slot]);
        if (slot != region->host->slot && holder_mode(holder) && holder_gen(holder) == region->gen &&
            host_may_hold(pool, slot, holder_epoch(holder), holder_epoch_WIDTH))
            return true;
    }
    return false;
}

static emx_status shrink(emx_region* region, uint64_t new_bytes) {
    emx_host* host = region->host;
    region_record* record = region->record;
    const uint64_t extent_bytes = host->pool->header.extent_bytes;
    const uint32_t new_count = extents_for(host->pool, new_bytes);
    const uint64_t word = shared_load(&record->word);
    uint64_t resizing = with_region_state(word, REGION_RESIZING);
    resizing = with_region_worker(resizing, host->slot);
    resizing = with_region_epoch(resizing, host->epoch);
    if (others_hold(region) || region_state(word) != REGION_LIVE ||
        !shared_swap(&record->word, word, resizing))
        return fail(EMX_E_BUSY,
                    "other hosts have region \"%s\" open; a region shrinks once only its owner holds it",
                    region->tag);
    pthread_rwlock_wrlock(&host->mapping);
    atomic_store(&region->size_bytes, new_bytes);
    address_forbid(region->base + new_count * extent_bytes,
                   (region->mapped_extents - new_count) * extent_bytes);
    region->mapped_extents = new_count;
    pthread_rwlock_unlock(&host->mapping);
    shared_store(&record->size_bytes, new_bytes);
    extents_give_back(host->pool, region->slot, region->gen, new_count, &record->word, resizing);
    uint64_t live = with_region_state(resizing, REGION_LIVE);
    live = with_region_version(live, region_version(resizing) + 1);
    if (shared_swap(&record->word, resizing, live)) return EMX_OK;
    return host_require_active(host);
}

static emx_status resize_locked(emx_region* region, uint64_t size_bytes) {
    emx_status status = host_require_active(region->host);
    if (status) return status;
    if (!region->writable) return fail(EMX_E_PERMISSION, "region \"%s\" is open here read-only", region->tag);
    status = adopt(region->host, region->record, region->gen);
    if (!status && shared_load(&region->record->size_bytes) != atomic_load(&region->size_bytes))
        status = map_whole(region);
    if (status) return status;
    const uint64_t old_bytes = atomic_load(&region->size_bytes);
    if (size_bytes == old_bytes) return EMX_OK;
    return size_bytes > old_bytes ? grow(region, old_bytes, size_bytes) : shrink(region, size_bytes);
}

emx_status emx_region_resize(emx_region* region, uint64_t size_bytes) {
    const emx_status known = handle_require(HANDLE_REGION, region);
    if (known) return known;
    if (size_bytes == 0) return fail(EMX_E_INVALID, "got size_bytes=0; expected at least 1");
    emx_host* host = region->host;
    if (pool_is_inherited(host->pool)) return host_require_active(host);
    const emx_status whole = pool_require_whole(host->pool);
    if (whole) return whole;
    const uint64_t max_bytes = shared_load(&region->record->max_bytes);
    if (size_bytes > max_bytes || size_bytes > region->room_bytes)
        return fail(EMX_E_INVALID,
                    "got size_bytes=%" PRIu64 "; region \"%s\" was carved with room for %" PRIu64, size_bytes,
                    region->tag, max_bytes);
    pthread_mutex_lock(&host->lock);
    const emx_status status = resize_locked(region, size_bytes);
    if (status == EMX_E_FENCED) host_surrender(host);
    pthread_mutex_unlock(&host->lock);
    return status;
}

/* ---- letting go ---------------------------------------------------------------------------------------- */

static void close_locked(emx_region* region) {
    emx_host* host = region->host;
    region_unlist(region);
    region_unmap(region);
    if (host_require_active(host) == EMX_OK) let_go(host, region->slot, region->gen);
    else host_surrender(host);
}

void emx_region_close(emx_region* region) {
    if (!handle_is(HANDLE_REGION, region)) return;
    emx_host* host = region->host;
    if (pool_is_inherited(host->pool)) {
        region_unlist(region);
        free(region->extents);
        handle_free(HANDLE_REGION, region);
        return;
    }
    pthread_mutex_lock(&host->lock);
    close_locked(region);
    pthread_mutex_unlock(&host->lock);
    region_destroy(region);
}

static void forget_persistence(region_record* record, uint32_t gen) {
    uint64_t word = shared_load(&record->word);
    while (is_live(word, gen) && region_persistent(word)) {
        if (shared_swap(&record->word, word, with_region_persistent(word, 0))) return;
        word = shared_load(&record->word);
    }
}

emx_status emx_region_release(emx_region* region) {
    emx_status status = handle_require(HANDLE_REGION, region);
    if (status) return status;
    emx_host* host = region->host;
    if (!pool_is_inherited(host->pool)) {
        pthread_mutex_lock(&host->lock);
        status = host_require_active(host);
        if (status) host_surrender(host);
        else if (!region->writable)
            status = fail(EMX_E_PERMISSION, "region \"%s\" is open here read-only", region->tag);
        else forget_persistence(region->record, region->gen);
        pthread_mutex_unlock(&host->lock);
    }
    if (!status) emx_region_close(region);
    return status;
}
