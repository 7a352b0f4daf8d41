/* Looking at a pool: its numbers, hosts and regions. Only reads, so it works on a pool that was opened
 * read-only. */
#include <stdio.h>
#include <string.h>

#include "pool/internal.h"

static void format_uuid(const uint8_t uuid[16], char text[37]) {
    char* at = text;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *at++ = '-';
        at += snprintf(at, 3, "%02x", uuid[i]);
    }
}

static void count_extents(const emx_pool* pool, emx_pool_info* info) {
    for (uint64_t i = 0; i < pool->header.num_extents; i++) {
        const uint64_t word = shared_load(&pool->extents[i]);
        switch (extent_state(word)) {
            case EXTENT_FREE:
                info->free_extents++;
                break;
            case EXTENT_RETIRED:
                info->retired_extents++;
                break;
            default:
                info->held_extents++;
                info->poisoned_extents += extent_poisoned(word) != 0;
        }
    }
}

emx_status emx_pool_get_info(const emx_pool* pool, emx_pool_info* info) {
    const emx_status status = pool_require_open(pool);
    if (status || !info)
        return status ? status : fail(EMX_E_INVALID, "got nowhere to put the pool's description");
    const pool_header* header = &pool->header;
    emx_pool_info found = {.max_hosts = header->max_hosts,
                           .max_regions = header->max_regions,
                           .file_bytes = header->file_bytes,
                           .extent_bytes = header->extent_bytes,
                           .num_extents = header->num_extents,
                           .created_ns = header->created_ns};
    format_uuid(header->uuid, found.uuid);
    count_extents(pool, &found);
    for (uint32_t i = 0; i < POOL_HOSTS; i++)
        found.num_hosts += host_state(shared_load(&pool->hosts[i].word)) != HOST_FREE;
    for (uint32_t i = 0; i < header->max_regions; i++)
        found.num_regions += region_state(shared_load(&pool->regions[i].word)) != REGION_FREE;
    emx_pool_list_poison(pool, NULL, 0, &found.num_poison_ranges);
    *info = found;
    return EMX_OK;
}

/* False: it is free, or became another host while its record was read. */
static bool describe_host(const emx_pool* pool, uint32_t slot, emx_host_info* info) {
    const host_record* record = &pool->hosts[slot];
    const uint64_t word = shared_load(&record->word), now_ns = process_boottime_ns();
    process_identity identity;
    if (host_state(word) == HOST_FREE || host_state(word) > HOST_DRAINED) return false;
    host_identity(record, &identity);
    const uint64_t beat_ns = shared_load(&record->heartbeat_ns);
    *info = (emx_host_info){
        .slot = slot,
        .epoch = (uint32_t)host_epoch(word),
        .state = (uint32_t)host_state(word),
        .is_here = process_shares_pids(&pool->self, &identity),
        .pid = identity.pid,
        .start_time = identity.start_time,
        .lease_ns = shared_load(&record->lease_ns),
        .quota_bytes = shared_load(&record->quota_bytes),
        .owned_bytes = host_owned_bytes(pool, slot, host_epoch(word)),
        .heartbeats = shared_load(&record->heartbeats),
        .silence_ns = !process_shares_clock(&pool->self, &identity) ? UINT64_MAX
                      : beat_ns < now_ns                            ? now_ns - beat_ns
                                                                    : 0,
    };
    text_load(record->name, info->name);
    if (host_state(word) == HOST_JOINING) { /* its record is still the slot's last one's */
        info->pid = host_pid(word);
        info->name[0] = 0;
        info->start_time = info->heartbeats = info->quota_bytes = info->lease_ns = 0;
    }
    return host_epoch(shared_load(&record->word)) == host_epoch(word);
}

emx_status emx_pool_list_hosts(const emx_pool* pool, emx_host_info* entries, uint32_t capacity,
                               uint32_t* count) {
    const emx_status status = pool_require_open(pool);
    uint32_t found = 0;
    if (status || !count || (!entries && capacity))
        return status ? status : fail(EMX_E_INVALID, "got nowhere to put the hosts");
    for (uint32_t slot = 0; slot < POOL_HOSTS; slot++) {
        emx_host_info info;
        if (!describe_host(pool, slot, &info)) continue;
        if (found < capacity) entries[found] = info;
        found++;
    }
    *count = found;
    return EMX_OK;
}

emx_status emx_host_get_info(const emx_host* host, emx_host_info* info) {
    emx_status status = handle_require(HANDLE_HOST, host);
    if (!status && !info) status = fail(EMX_E_INVALID, "got nowhere to put the host's description");
    if (!status) status = host_require_active(host);
    if (status) return status;
    emx_host_info found;
    if (!describe_host(host->pool, host->slot, &found)) return host_require_active(host);
    *info = found;
    return EMX_OK;
}

static unsigned public_state(uint64_t word) {
    switch (region_state(word)) {
        case REGION_LIVE:
            return EMX_REGION_LIVE;
        case REGION_RESIZING:
            return EMX_REGION_RESIZING;
        case REGION_DYING:
            return EMX_REGION_DYING;
        default:
            return EMX_REGION_CARVING;
    }
}

static void describe_holders(const emx_pool* pool, const region_record* record, uint64_t word,
                             emx_region_entry* entry) {
    for (uint32_t slot = 0; slot < POOL_HOSTS; slot++) {
        const uint64_t holder = shared_load(&record->holders[slot]);
        if (!holder_mode(holder) || holder_gen(holder) != region_gen(word)) continue;
        if (!host_may_hold(pool, slot, holder_epoch(holder), holder_epoch_WIDTH)) continue;
        if (holder_mode(holder) == HOLDER_WRITES) entry->writers |= UINT64_C(1) << slot;
        else entry->readers |= UINT64_C(1) << slot;
    }
}

static bool describe_region(const emx_pool* pool, uint32_t slot, emx_region_entry* entry) {
    const region_record* record = &pool->regions[slot];
    const uint64_t word = shared_load(&record->word), owner = shared_load(&record->owner);
    if (region_state(word) == REGION_FREE || region_state(word) == REGION_NAMING) return false;
    *entry = (emx_region_entry){
        .slot = slot,
        .state = public_state(word),
        .persistent = (uint32_t)region_persistent(word),
        .sharing = (uint32_t)shared_load(&record->sharing),
        .owner = owner_holds(pool, owner, region_gen(word)) ? (int32_t)owner_slot(owner) : -1,
        .size_bytes = shared_load(&record->size_bytes),
        .max_bytes = shared_load(&record->max_bytes),
    };
    text_load(record->tag, entry->tag);
    describe_holders(pool, record, word, entry);
    return region_gen(shared_load(&record->word)) == region_gen(word);
}

static void count_held(const emx_pool* pool, emx_region_entry* entries, uint32_t count) {
    uint32_t place[POOL_MAX_REGIONS];
    memset(place, 0xff, sizeof place);
    for (uint32_t i = 0; i < count; i++) place[entries[i].slot] = i;
    for (uint64_t i = 0; i < pool->header.num_extents; i++) {
        const uint64_t word = shared_load(&pool->extents[i]);
        if (extent_state(word) != EXTENT_CLAIMED && extent_state(word) != EXTENT_READY) continue;
        const uint32_t at = place[extent_region(word)];
        if (at == UINT32_MAX ||
            region_gen(shared_load(&pool->regions[extent_region(word)].word)) != extent_gen(word))
            continue;
        entries[at].num_extents++;
        entries[at].poisoned_extents += extent_poisoned(word) != 0;
    }
}

emx_status emx_pool_list_regions(const emx_pool* pool, emx_region_entry* entries, uint32_t capacity,
                                 uint32_t* count) {
    const emx_status status = pool_require_open(pool);
    uint32_t found = 0;
    if (status || !count || (!entries && capacity))
        return status ? status : fail(EMX_E_INVALID, "got nowhere to put the regions");
    for (uint32_t slot = 0; slot < pool->header.max_regions; slot++) {
        emx_region_entry entry;
        if (!describe_region(pool, slot, &entry)) continue;
        if (found < capacity) entries[found] = entry;
        found++;
    }
    count_held(pool, entries, found < capacity ? found : capacity);
    *count = found;
    return EMX_OK;
}
