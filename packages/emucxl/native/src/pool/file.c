/* Making, opening and closing a pool's file. What a file says is checked once, here, against what this
 * version would have written; the tables' words, which go on changing, are range-checked wherever they are
 * used. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pool/internal.h"
#include "prim/file.h"

static const uint64_t HUGE_BYTES = 2u << 20;
static const uint64_t MAX_EXTENT_BYTES = 512u << 20, MAX_POOL_BYTES = UINT64_C(1)
                                                                      << 46; /* what a poison word can name */

/* ---- names --------------------------------------------------------------------------------------------- */

void text_store(shared_word* words, const char* text) {
    uint64_t packed[TAG_WORDS] = {0};
    memcpy(packed, text, strlen(text));
    for (int i = 0; i < TAG_WORDS; i++) shared_store(&words[i], packed[i]);
}

void text_load(const shared_word* words, char* text) {
    uint64_t packed[TAG_WORDS];
    for (int i = 0; i < TAG_WORDS; i++) packed[i] = shared_load(&words[i]);
    memcpy(text, packed, EMX_TAG_BYTES);
    text[EMX_TAG_BYTES - 1] = 0;
}

emx_status text_check(const char* text, const char* what) {
    if (!text || !text[0] || strlen(text) >= EMX_TAG_BYTES)
        return fail(EMX_E_INVALID, "got a %s of %zu bytes; expected 1 to %d", what, text ? strlen(text) : 0,
                    EMX_TAG_BYTES - 1);
    for (const char* at = text; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 127)
            return fail(EMX_E_INVALID, "got a %s with the control character 0x%02x; expected printable text",
                        what, *at);
    return EMX_OK;
}

static emx_status resolve(const char* path, char* resolved) {
    if (!path || !path[0]) return fail(EMX_E_INVALID, "got no path; expected a path, or the name of a pool");
    const bool is_path = strchr(path, '/') != NULL;
    const int length =
        is_path ? snprintf(resolved, PATH_MAX, "%s", path)
                : snprintf(resolved, PATH_MAX, "%s/%s%s", EMX_POOL_DIRECTORY, EMX_POOL_PREFIX, path);
    if (length >= PATH_MAX)
        return fail(EMX_E_INVALID, "got a path of %d bytes; expected fewer than %d", length, PATH_MAX);
    return EMX_OK;
}

/* ---- geometry ------------------------------------------------------------------------------------------ */

static uint64_t round_up(uint64_t value, uint64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

static uint64_t checksum_of(const pool_header* header) { /* FNV-1a */
    const unsigned char* bytes = (const unsigned char*)header;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < offsetof(pool_header, checksum); i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

/* Where everything lies follows from three numbers. */
static void lay_out(pool_header* header, uint64_t extent_bytes, uint64_t num_extents, uint32_t max_regions) {
    header->magic = POOL_MAGIC;
    header->version = POOL_VERSION;
    header->header_bytes = sizeof *header;
    header->extent_bytes = extent_bytes;
    header->num_extents = num_extents;
    header->max_hosts = POOL_HOSTS;
    header->max_regions = max_regions;
    header->max_poison = POOL_POISON_WORDS;
    header->reserved = 0;
    header->hosts_offset = POOL_PAGE;
    header->regions_offset = header->hosts_offset + POOL_HOSTS * sizeof(host_record);
    header->extents_offset = header->regions_offset + max_regions * sizeof(region_record);
    header->poison_offset = round_up(header->extents_offset + num_extents * sizeof(shared_word), POOL_LINE);
    const uint64_t tables_end = header->poison_offset + POOL_POISON_WORDS * sizeof(shared_word);
    /* Devices map in huge pages only, and files do so faster. */
    header->data_offset = round_up(tables_end, extent_bytes % HUGE_BYTES == 0 ? HUGE_BYTES : POOL_PAGE);
    header->file_bytes = header->data_offset + num_extents * extent_bytes;
}

static emx_status check_config(emx_pool_config* config) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (config->struct_bytes != sizeof *config)
        return fail(EMX_E_INVALID, "got struct_bytes=%u; expected %zu", config->struct_bytes, sizeof *config);
    if (config->flags & ~(uint32_t)(EMX_POOL_FORMAT | EMX_POOL_OVERWRITE))
        return fail(EMX_E_INVALID, "got flags=%#x; expected EMX_POOL_FORMAT, EMX_POOL_OVERWRITE or none",
                    config->flags);
    if (config->extent_bytes == 0) config->extent_bytes = HUGE_BYTES;
    if (config->max_regions == 0) config->max_regions = 256;
    if (config->extent_bytes % page || config->extent_bytes > MAX_EXTENT_BYTES)
        return fail(EMX_E_INVALID,
                    "got extent_bytes=%" PRIu64 "; expected a multiple of the page size, %" PRIu64
                    ", up to 512 MiB",
                    config->extent_bytes, page);
    if (config->max_regions > POOL_MAX_REGIONS)
        return fail(EMX_E_INVALID, "got max_regions=%u; expected at most %d", config->max_regions,
                    POOL_MAX_REGIONS);
    if (config->size_bytes == 0 && !(config->flags & EMX_POOL_FORMAT))
        return fail(EMX_E_INVALID, "got size_bytes=0; expected at least 1");
    if (config->size_bytes / config->extent_bytes >= POOL_MAX_EXTENTS)
        return fail(EMX_E_INVALID,
                    "got size_bytes=%" PRIu64 ", %" PRIu64 " extents of %" PRIu64
                    " bytes; expected fewer than %d extents: ask for larger ones",
                    config->size_bytes, config->size_bytes / config->extent_bytes, config->extent_bytes,
                    POOL_MAX_EXTENTS);
    if (config->size_bytes > MAX_POOL_BYTES)
        return fail(EMX_E_INVALID, "got size_bytes=%" PRIu64 "; expected at most 64 TiB", config->size_bytes);
    return EMX_OK;
}

/* The most extents that fit into `file_bytes` with their tables; 0 if not even one does. */
static uint64_t extents_that_fit(uint64_t file_bytes, uint64_t extent_bytes, uint32_t max_regions) {
    pool_header header;
    uint64_t num_extents = file_bytes / extent_bytes;
    if (num_extents >= POOL_MAX_EXTENTS) num_extents = POOL_MAX_EXTENTS - 1;
    if (num_extents > MAX_POOL_BYTES / extent_bytes) num_extents = MAX_POOL_BYTES / extent_bytes;
    for (; num_extents > 0; num_extents--) {
        lay_out(&header, extent_bytes, num_extents, max_regions);
        if (header.file_bytes <= file_bytes) break;
    }
    return num_extents;
}

/* ---- the object ---------------------------------------------------------------------------------------- */

bool pool_is_inherited(const emx_pool* pool) { return pool->fork_count != process_fork_count(); }

emx_status pool_require_whole(const emx_pool* pool) {
    if (file_guard_holds(&pool->guard)) return EMX_OK;
    return fail(EMX_E_CORRUPT,
                "the pool's file of %" PRIu64
                " bytes was cut short by another process; close it, and make another",
                pool->header.file_bytes);
}

emx_status pool_require_open(const emx_pool* pool) {
    const emx_status status = handle_require(HANDLE_POOL, pool);
    if (status) return status;
    if (pool_is_inherited(pool))
        return fail(EMX_E_CLOSED, "the pool was opened by the parent of this process; open it here too");
    return pool_require_whole(pool);
}

emx_status pool_require_writable(const emx_pool* pool) {
    const emx_status status = pool_require_open(pool);
    if (status) return status;
    if (!pool->writable)
        return fail(EMX_E_PERMISSION, "the pool was opened with EMX_POOL_READ_ONLY; open it without");
    return EMX_OK;
}

static void point_at_tables(emx_pool* pool) {
    unsigned char* base = pool->tables;
    pool->hosts = (host_record*)(base + pool->header.hosts_offset);
    pool->regions = (region_record*)(base + pool->header.regions_offset);
    pool->extents = (shared_word*)(base + pool->header.extents_offset);
    pool->poison = (shared_word*)(base + pool->header.poison_offset);
}

static emx_status make_object(emx_pool** made) {
    emx_pool* pool = handle_alloc(HANDLE_POOL, sizeof *pool);
    if (!pool) return fail(EMX_E_NO_MEMORY, "no memory for a pool's handle");
    pool->fd = -1;
    pool->fork_count = process_fork_count();
    pthread_mutex_init(&pool->lock, NULL);
    const int error = process_identify_self(&pool->self);
    if (error) {
        handle_free(HANDLE_POOL, pool);
        return fail_system(error, "cannot tell who this process is (is /proc mounted?)");
    }
    presence_watch(pool);
    *made = pool;
    return EMX_OK;
}

static void destroy_object(emx_pool* pool) {
    if (!pool_is_inherited(pool)) presence_unwatch(pool);
    if (pool->tables && !pool_is_inherited(pool)) address_release(pool->tables, pool->tables_bytes);
    close_file(pool->fd);
    pthread_mutex_destroy(&pool->lock);
    handle_free(HANDLE_POOL, pool);
}

/* Ends an attempt to make or open a pool: hands it out, or undoes it. */
static emx_status finish(emx_pool* pool, emx_status status, emx_pool** finished) {
    if (status) {
        destroy_object(pool);
        return status;
    }
    file_guard_open(&pool->guard, pool->fd, pool->header.file_bytes);
    handle_open(HANDLE_POOL, pool);
    *finished = pool;
    return EMX_OK;
}

static emx_status map_tables(emx_pool* pool, const char* path) {
    pool->lock_inode = file_inode(pool->fd);
    pool->tables_bytes = (size_t)pool->header.data_offset;
    const int error = map_file(pool->fd, 0, pool->tables_bytes, pool->writable, NULL, &pool->tables);
    if (error) return fail_system(error, "cannot map the tables of the pool %s", path);
    point_at_tables(pool);
    return EMX_OK;
}

/* ---- creating ------------------------------------------------------------------------------------------ */

/* The tables, zero but for extents known to be clean; the header last, so that a pool exists at once or not
 * at all. */
static emx_status write_tables(emx_pool* pool, const char* path, bool is_fresh) {
    const emx_status status = map_tables(pool, path);
    if (status) return status;
    if (!is_fresh) memset(pool->tables, 0, pool->tables_bytes);
    for (uint64_t i = 0; i < pool->header.num_extents; i++)
        shared_store(&pool->extents[i], with_extent_clean(0, is_fresh));
    pool->header.created_ns = process_realtime_ns();
    const int error = process_random(pool->header.uuid, sizeof pool->header.uuid);
    if (error) return fail_system(error, "cannot draw a uuid");
    pool->header.checksum = checksum_of(&pool->header);
    memcpy((unsigned char*)pool->tables + sizeof pool->header.magic, &pool->header.version,
           sizeof pool->header - sizeof pool->header.magic);
    shared_store((shared_word*)pool->tables, pool->header.magic);
    return EMX_OK;
}

static emx_status create_file(emx_pool* pool, const char* path, const emx_pool_config* config) {
    char temporary[PATH_MAX];
    const uint64_t num_extents = (config->size_bytes + config->extent_bytes - 1) / config->extent_bytes;
    lay_out(&pool->header, config->extent_bytes, num_extents, config->max_regions);
    int error = file_create_nameless(path, &pool->fd, temporary);
    if (error) return fail_system(error, "cannot make the pool %s", path);
    pool->writable = true;
    error = file_reserve(pool->fd, pool->header.file_bytes);
    emx_status status = error ? fail_system(error,
                                            "cannot reserve the %" PRIu64
                                            " bytes of the pool %s; ask for less, or free "
                                            "some",
                                            pool->header.file_bytes, path)
                              : write_tables(pool, path, true);
    if (!status && (error = file_publish(pool->fd, temporary, path)) != 0)
        status = error == EEXIST ? fail(EMX_E_EXISTS, "%s exists; open it, or remove it first", path)
                                 : fail_system(error, "cannot name the pool %s", path);
    if (status) file_remove(temporary);
    return status;
}

static emx_status open_file(emx_pool* pool, const char* path, bool writable, file_facts* facts) {
    const int error = file_open(path, writable, &pool->fd, facts);
    if (error == ELOOP || error == EINVAL)
        return fail(EMX_E_INVALID, "%s is neither a file nor a character device", path);
    if (error) return fail_system(error, "cannot open the pool %s", path);
    if (!facts->is_device && !(facts->is_mine && facts->is_private))
        return fail(EMX_E_PERMISSION, "%s %s; expected a file of this user with mode 0600", path,
                    facts->is_mine ? "may be opened by other users" : "belongs to another user");
    pool->writable = writable;
    return EMX_OK;
}

static bool holds_pool(int fd, uint64_t size_bytes) {
    void* page;
    const size_t mapped_bytes = size_bytes % HUGE_BYTES == 0 ? HUGE_BYTES : POOL_PAGE;
    if (size_bytes < POOL_PAGE || map_file(fd, 0, mapped_bytes, false, NULL, &page) != 0) return false;
    const bool holds = shared_load((shared_word*)page) == POOL_MAGIC;
    address_release(page, mapped_bytes);
    return holds;
}

static emx_status format_existing(emx_pool* pool, const char* path, const emx_pool_config* config) {
    file_facts facts;
    const emx_status status = open_file(pool, path, true, &facts);
    if (status) return status;
    if (!(config->flags & EMX_POOL_OVERWRITE) && holds_pool(pool->fd, facts.size_bytes))
        return fail(EMX_E_EXISTS, "%s holds a pool; open it, or overwrite it with EMX_POOL_OVERWRITE", path);
    const uint64_t fitting = extents_that_fit(facts.size_bytes, config->extent_bytes, config->max_regions);
    const uint64_t wanted = (config->size_bytes + config->extent_bytes - 1) / config->extent_bytes;
    if (fitting == 0 || wanted > fitting)
        return fail(EMX_E_INVALID,
                    "%s has %" PRIu64 " bytes, room for %" PRIu64 " extents of %" PRIu64
                    " bytes beside the tables; expected at least %" PRIu64,
                    path, facts.size_bytes, fitting, config->extent_bytes, wanted ? wanted : 1);
    lay_out(&pool->header, config->extent_bytes, wanted ? wanted : fitting, config->max_regions);
    if (!facts.is_device) { /* an ordinary file may have holes */
        const int error = file_reserve(pool->fd, facts.size_bytes);
        if (error)
            return fail_system(error, "cannot reserve the %" PRIu64 " bytes of %s", facts.size_bytes, path);
    }
    return write_tables(pool, path, false);
}

emx_status emx_pool_create(const char* path, const emx_pool_config* config, emx_pool** created) {
    char resolved[PATH_MAX];
    emx_pool* pool;
    if (!config || !created) return fail(EMX_E_INVALID, "got no config, or nowhere to put the pool");
    emx_pool_config checked = *config;
    emx_status status = resolve(path, resolved);
    if (!status) status = check_config(&checked);
    if (!status) status = make_object(&pool);
    if (status) return status;
    status = checked.flags & EMX_POOL_FORMAT ? format_existing(pool, resolved, &checked)
                                             : create_file(pool, resolved, &checked);
    return finish(pool, status, created);
}

/* ---- opening ------------------------------------------------------------------------------------------- */

/* Copies the header, and holds it against what this version would have written. */
static emx_status read_header(emx_pool* pool, const char* path, uint64_t actual_bytes) {
    pool_header expected, *header = &pool->header;
    void* page;
    const size_t mapped_bytes = actual_bytes % HUGE_BYTES == 0 ? HUGE_BYTES : POOL_PAGE;
    if (actual_bytes < POOL_PAGE)
        return fail(EMX_E_FOREIGN, "%s has %" PRIu64 " bytes; that is no pool", path, actual_bytes);
    const int error = map_file(pool->fd, 0, mapped_bytes, false, NULL, &page);
    if (error) return fail_system(error, "cannot map the header of %s", path);
    memcpy(header, page, sizeof *header);
    address_release(page, mapped_bytes);
    if (header->magic != POOL_MAGIC) return fail(EMX_E_FOREIGN, "%s does not begin like a pool", path);
    if (header->version != POOL_VERSION)
        return fail(
            EMX_E_FOREIGN,
            "%s is a pool of version %u; this library makes and opens version %d: remove it and make it "
            "anew, or use the library that made it",
            path, header->version, POOL_VERSION);
    if (header->checksum != checksum_of(header))
        return fail(EMX_E_CORRUPT, "the checksum of the header of %s is wrong", path);
    expected = *header;
    if (header->extent_bytes == 0 || header->extent_bytes % POOL_PAGE ||
        header->extent_bytes > MAX_EXTENT_BYTES || header->num_extents == 0 ||
        header->num_extents >= POOL_MAX_EXTENTS || header->max_regions == 0 ||
        header->max_regions > POOL_MAX_REGIONS || header->num_extents > MAX_POOL_BYTES / header->extent_bytes)
        return fail(EMX_E_CORRUPT, "the header of %s gives sizes that no pool has", path);
    lay_out(&expected, header->extent_bytes, header->num_extents, header->max_regions);
    if (memcmp(&expected, header, offsetof(pool_header, checksum)) != 0)
        return fail(EMX_E_CORRUPT, "the header of %s contradicts itself", path);
    if (header->file_bytes > actual_bytes)
        return fail(EMX_E_CORRUPT, "%s has %" PRIu64 " bytes; expected %" PRIu64 ": it was cut short", path,
                    actual_bytes, header->file_bytes);
    return EMX_OK;
}

/* Words that no host can have written. What is merely unfinished is reclaim's to finish. */
static emx_status check_words(const emx_pool* pool) {
    for (uint32_t i = 0; i < POOL_HOSTS; i++)
        if (host_state(shared_load(&pool->hosts[i].word)) > HOST_DRAINED)
            return fail(EMX_E_CORRUPT, "host %u is in a state that does not exist", i);
    for (uint32_t i = 0; i < pool->header.max_regions; i++)
        if (region_state(shared_load(&pool->regions[i].word)) > REGION_DYING)
            return fail(EMX_E_CORRUPT, "region %u is in a state that does not exist", i);
    for (uint32_t i = 0; i < pool->header.num_extents; i++) {
        const uint64_t word = shared_load(&pool->extents[i]);
        const bool held = extent_state(word) == EXTENT_CLAIMED || extent_state(word) == EXTENT_READY;
        if (held && (extent_region(word) >= pool->header.max_regions ||
                     extent_index(word) >= pool->header.num_extents))
            return fail(EMX_E_CORRUPT, "extent %u belongs to region %u at index %u; neither can be", i,
                        (unsigned)extent_region(word), (unsigned)extent_index(word));
    }
    return EMX_OK;
}

emx_status emx_pool_open(const char* path, uint32_t flags, emx_pool** opened) {
    char resolved[PATH_MAX];
    emx_pool* pool;
    file_facts facts;
    if (!opened) return fail(EMX_E_INVALID, "got nowhere to put the pool");
    if (flags & ~(uint32_t)EMX_POOL_READ_ONLY)
        return fail(EMX_E_INVALID, "got flags=%#x; expected EMX_POOL_READ_ONLY or none", flags);
    emx_status status = resolve(path, resolved);
    if (!status) status = make_object(&pool);
    if (status) return status;
    status = open_file(pool, resolved, !(flags & EMX_POOL_READ_ONLY), &facts);
    if (!status) status = read_header(pool, resolved, facts.size_bytes);
    if (!status) status = map_tables(pool, resolved);
    if (!status) status = check_words(pool);
    return finish(pool, status, opened);
}

void emx_pool_close(emx_pool* pool) {
    if (!handle_is(HANDLE_POOL, pool)) return;
    while (pool->joined) emx_host_leave(pool->joined);
    destroy_object(pool);
}
