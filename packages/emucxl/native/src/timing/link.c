#include "timing/link.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"
#include "handle.h"
#include "prim/clock.h"
#include "prim/file_guard.h"
#include "prim/process.h"
#include "prim/shared_page.h"

_Static_assert(sizeof(emx_lane) == 128, "the layout of a lane is public");
_Static_assert(sizeof(emx_link_page) <= EMX_LINK_FILE_BYTES, "a link fits its file");

enum { CLOCK_UNKNOWN = 0, CLOCK_OF_MACHINE = 1, CLOCK_OF_CONTEXTS = 2 };

struct emx_link {
    handle handle;
    emx_link_page* page;
    int fd;
    file_guard guard;
    atomic_uint users;
    lane_rate rates[2];      /* by direction */
    int64_t clock_offset_ns; /* of this process's clock, beyond the machine's */
};

static uint64_t fnv1a(uint64_t hash, const void* bytes, size_t size_bytes) {
    for (size_t i = 0; i < size_bytes; i++)
        hash = (hash ^ ((const unsigned char*)bytes)[i]) * 0x100000001b3ull;
    return hash;
}

static uint64_t check_of(const emx_link_page* page) {
    size_t begin = offsetof(emx_link_page, read_bandwidth_gbps), end = offsetof(emx_link_page, check);
    uint64_t hash = fnv1a(0xcbf29ce484222325ull, (const char*)page + begin, end - begin);
    return fnv1a(hash, &page->full_duplex, sizeof page->full_duplex);
}

static bool bandwidth_is_valid(double gbps) {
    return gbps >= LEAST_BANDWIDTH_GBPS && gbps <= MOST_BANDWIDTH_GBPS;
}

static emx_status check_config(const emx_link_config* config) {
    if (config->struct_bytes != sizeof *config)
        return fail(EMX_E_INVALID, "got a link config of %u bytes; expected %zu", config->struct_bytes,
                    sizeof *config);
    if (config->full_duplex > 1)
        return fail(EMX_E_INVALID, "got full_duplex %u; expected 0 or 1", config->full_duplex);
    if (!bandwidth_is_valid(config->read_bandwidth_gbps) || !bandwidth_is_valid(config->write_bandwidth_gbps))
        return fail(EMX_E_INVALID, "got link bandwidths of %g and %g GB/s; expected %g to %g",
                    config->read_bandwidth_gbps, config->write_bandwidth_gbps, LEAST_BANDWIDTH_GBPS,
                    MOST_BANDWIDTH_GBPS);
    if (!(config->latency_ns >= 0 && config->latency_ns <= MOST_LATENCY_NS))
        return fail(EMX_E_INVALID, "got a link latency of %g ns; expected 0 to %g", config->latency_ns,
                    MOST_LATENCY_NS);
    return EMX_OK;
}

static emx_link_config config_of(const emx_link_page* page) {
    return (emx_link_config){.struct_bytes = sizeof(emx_link_config),
                             .full_duplex = page->full_duplex,
                             .read_bandwidth_gbps = page->read_bandwidth_gbps,
                             .write_bandwidth_gbps = page->write_bandwidth_gbps,
                             .latency_ns = page->latency_ns};
}

static void fill_page(emx_link_page* page, const emx_link_config* config) {
    page->magic = EMX_LINK_MAGIC;
    page->version = EMX_LINK_VERSION;
    page->struct_bytes = sizeof *page;
    page->full_duplex = config->full_duplex;
    page->read_bandwidth_gbps = config->read_bandwidth_gbps;
    page->write_bandwidth_gbps = config->write_bandwidth_gbps;
    page->latency_ns = config->latency_ns;
    page->check = check_of(page);
    page->creator_pid = process_own_pid();
    page->boot_id = process_boot_hash();
}

/* After a restart of the machine the clock that the queues' times count in has begun anew. Whoever notices
 * first forgets them; if that process dies meanwhile, EMX_LINK_MOST_AHEAD_NS keeps what is left from harm. */
static void forget_earlier_boot(emx_link_page* page) {
    uint64_t now = process_boot_hash(), found = __atomic_load_n(&page->boot_id, __ATOMIC_RELAXED);
    if (found == now || __atomic_load_n(&page->clock, __ATOMIC_RELAXED) == CLOCK_OF_CONTEXTS) return;
    if (!__atomic_compare_exchange_n(&page->boot_id, &found, now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return;
    lane_restart(&page->lanes[0]);
    lane_restart(&page->lanes[1]);
}

static emx_status check_page(const emx_link_page* page) {
    if (page->magic != EMX_LINK_MAGIC)
        return fail(EMX_E_FOREIGN, "the file is no link: it begins with other bytes");
    if (page->version != EMX_LINK_VERSION || page->struct_bytes != sizeof *page)
        return fail(EMX_E_FOREIGN,
                    "the link has version %u and %u bytes; this library makes version %u of %zu bytes: "
                    "remove the file, and it "
                    "is made anew",
                    page->version, page->struct_bytes, EMX_LINK_VERSION, sizeof *page);
    if (page->check != check_of(page))
        return fail(EMX_E_CORRUPT, "the link's configuration does not match its checksum");
    emx_link_config config = config_of(page);
    if (check_config(&config) != EMX_OK)
        return fail(EMX_E_CORRUPT, "the link's configuration makes no sense");
    return EMX_OK;
}

/* Takes `fd` over, also when it fails. */
static emx_status adopt(int fd, const emx_link_config* fresh, emx_link** link) {
    void* page = NULL;
    emx_status status = shared_page_map(fd, EMX_LINK_FILE_BYTES, &page);
    if (status == EMX_OK && fresh != NULL) fill_page(page, fresh);
    if (status == EMX_OK) status = check_page(page);
    emx_link* made = status == EMX_OK ? handle_alloc(HANDLE_LINK, sizeof *made) : NULL;
    if (status == EMX_OK && made == NULL) status = fail(EMX_E_NO_MEMORY, "no memory for a link");
    if (status != EMX_OK) {
        if (page != NULL) shared_page_unmap(page, EMX_LINK_FILE_BYTES);
        shared_page_close(fd);
        return status;
    }
    forget_earlier_boot(page);
    made->page = page;
    made->fd = fd;
    made->clock_offset_ns = process_monotonic_offset_ns();
    file_guard_open(&made->guard, fd, EMX_LINK_FILE_BYTES);
    made->rates[EMX_READ] = lane_rate_of(made->page->read_bandwidth_gbps);
    made->rates[EMX_WRITE] = lane_rate_of(made->page->write_bandwidth_gbps);
    atomic_init(&made->users, 1);
    handle_open(HANDLE_LINK, made);
    *link = made;
    return EMX_OK;
}

emx_status emx_link_create(const emx_link_config* config, emx_link** link) {
    if (config == NULL || link == NULL)
        return fail(EMX_E_INVALID, "got NULL; expected a config and a place for the link");
    emx_status status = check_config(config);
    int fd;
    if (status == EMX_OK) status = shared_page_create("emucxl-link", EMX_LINK_FILE_BYTES, &fd);
    return status == EMX_OK ? adopt(fd, config, link) : status;
}

emx_status emx_link_attach(int fd, emx_link** link) {
    if (link == NULL) return fail(EMX_E_INVALID, "got NULL; expected a place for the link");
    int own;
    emx_status status = shared_page_duplicate(fd, EMX_LINK_FILE_BYTES, &own);
    return status == EMX_OK ? adopt(own, NULL, link) : status;
}

bool link_may_shrink(const emx_link* link) { return link->guard.is_needed; }

emx_status link_check(const emx_link* link) {
    if (file_guard_holds(&link->guard)) return EMX_OK;
    return fail(EMX_E_CORRUPT,
                "the link's file was cut short by another process; close the link, and make another one");
}

/* An open link whose page may be touched. */
static emx_status require(const emx_link* link) {
    const emx_status status = handle_require(HANDLE_LINK, link);
    return status == EMX_OK ? link_check(link) : status;
}

static bool same_config(const emx_link_config* left, const emx_link_config* right) {
    return left->full_duplex == right->full_duplex &&
           left->read_bandwidth_gbps == right->read_bandwidth_gbps &&
           left->write_bandwidth_gbps == right->write_bandwidth_gbps && left->latency_ns == right->latency_ns;
}

static emx_status open_existing(const char* path, const emx_link_config* config, emx_link** link) {
    int fd;
    emx_link* opened;
    emx_status status = shared_page_open(path, EMX_LINK_FILE_BYTES, &fd);
    if (status == EMX_OK) status = adopt(fd, NULL, &opened);
    if (status != EMX_OK) return status;
    emx_link_config found = config_of(opened->page);
    if (config != NULL && !same_config(&found, config)) {
        emx_link_close(opened);
        return fail(
            EMX_E_EXISTS,
            "'%s' is a link of %g and %g GB/s, %g ns, %s duplex; open it without a config, or remove it",
            path, found.read_bandwidth_gbps, found.write_bandwidth_gbps, found.latency_ns,
            found.full_duplex ? "full" : "half");
    }
    *link = opened;
    return EMX_OK;
}

emx_status emx_link_open(const char* path, const emx_link_config* config, emx_link** link) {
    if (path == NULL || link == NULL)
        return fail(EMX_E_INVALID, "got NULL; expected a path and a place for the link");
    emx_status status = config != NULL ? check_config(config) : EMX_OK;
    if (status != EMX_OK) return status;
    status = open_existing(path, config, link);
    if (status != EMX_E_NOT_FOUND || config == NULL) return status;
    union {
        emx_link_page page;
        char bytes[EMX_LINK_FILE_BYTES];
    } fresh = {0};
    fill_page(&fresh.page, config);
    int fd;
    status = shared_page_publish(path, &fresh, sizeof fresh, &fd);
    if (status == EMX_E_EXISTS) return open_existing(path, config, link); /* another process was faster */
    return status == EMX_OK ? adopt(fd, NULL, link) : status;
}

int emx_link_fd(const emx_link* link) { return handle_is(HANDLE_LINK, link) ? link->fd : -1; }

void emx_link_close(emx_link* link) {
    if (!handle_is(HANDLE_LINK, link)) return;
    link->handle.mark = 0; /* the program's; tiers go on */
    link_release(link);
}

emx_status emx_link_get_config(const emx_link* link, emx_link_config* config) {
    const emx_status status = require(link);
    if (status != EMX_OK) return status;
    if (config == NULL) return fail(EMX_E_INVALID, "got NULL; expected a place for the link's config");
    *config = config_of(link->page);
    return EMX_OK;
}

static uint64_t load(const uint64_t* field) { return __atomic_load_n(field, __ATOMIC_RELAXED); }

static bool is_real(const emx_link* link) {
    return __atomic_load_n(&link->page->clock, __ATOMIC_RELAXED) == CLOCK_OF_MACHINE;
}

static emx_lane* lane_of(const emx_link* link, emx_direction direction) {
    return &link->page->lanes[link->page->full_duplex ? direction : 0];
}

/* The real clock tells what is recent; among virtual ones it is the one that is ahead. */
static double recent_utilisation(const emx_link* link, emx_direction direction) {
    if (is_real(link)) return link_utilisation(link, direction, clock_read_ns());
    emx_lane* lane = lane_of(link, direction);
    return lane_utilisation(lane, load(&lane->latest_ns));
}

emx_status emx_link_get_stats(const emx_link* link, emx_link_stats* stats) {
    const emx_status status = require(link);
    if (status != EMX_OK) return status;
    if (stats == NULL) return fail(EMX_E_INVALID, "got NULL; expected a place for the link's statistics");
    emx_lane *reads = lane_of(link, EMX_READ), *writes = lane_of(link, EMX_WRITE);
    *stats = (emx_link_stats){
        .read_bytes = load(&reads->bytes[EMX_READ]),
        .write_bytes = load(&writes->bytes[EMX_WRITE]),
        .read_transfers = load(&reads->transfers[EMX_READ]),
        .write_transfers = load(&writes->transfers[EMX_WRITE]),
        .read_busy_ns = load(&reads->busy_ns[EMX_READ]),
        .write_busy_ns = load(&writes->busy_ns[EMX_WRITE]),
        .queued_ns = load(&reads->queued_ns) + (writes != reads ? load(&writes->queued_ns) : 0),
        .read_utilisation = recent_utilisation(link, EMX_READ),
        .write_utilisation = recent_utilisation(link, EMX_WRITE),
    };
    return EMX_OK;
}

emx_status emx_link_reserve(emx_link* link, emx_direction direction, uint64_t size_bytes, uint64_t now_ns,
                            uint64_t* release_ns) {
    const emx_status status = require(link);
    if (status != EMX_OK) return status;
    if (release_ns == NULL || (direction != EMX_READ && direction != EMX_WRITE))
        return fail(
            EMX_E_INVALID,
            "got a NULL pointer or direction %d; expected a place for the time, and EMX_READ or EMX_WRITE",
            direction);
    *release_ns = link_queue(link, direction, size_bytes, now_ns).release_ns;
    return EMX_OK;
}

emx_status link_join(emx_link* link, bool real_clock) {
    const emx_status status = require(link);
    if (status != EMX_OK) return status;
    uint32_t wanted = real_clock ? CLOCK_OF_MACHINE : CLOCK_OF_CONTEXTS, found = CLOCK_UNKNOWN;
    bool first = __atomic_compare_exchange_n(&link->page->clock, &found, wanted, false, __ATOMIC_RELAXED,
                                             __ATOMIC_RELAXED);
    if (!first && found != wanted)
        return fail(EMX_E_INVALID, "the link follows %s and cannot be used on %s; make another link",
                    found == CLOCK_OF_MACHINE ? "the real clock" : "virtual clocks",
                    real_clock ? "the real clock" : "a virtual one");
    atomic_fetch_add(&link->users, 1);
    return EMX_OK;
}

void link_release(emx_link* link) {
    if (atomic_fetch_sub(&link->users, 1) != 1) return;
    shared_page_unmap(link->page, EMX_LINK_FILE_BYTES);
    shared_page_close(link->fd);
    handle_free(HANDLE_LINK, link);
}

lane_slot link_queue(emx_link* link, emx_direction direction, uint64_t size_bytes, uint64_t now_ns) {
    emx_lane* lane = lane_of(link, direction);
    if (!is_real(link))
        return lane_reserve(lane, link->rates[direction], direction, size_bytes, now_ns, UINT64_MAX);
    /* Wraps where it is negative, there and back. */
    const uint64_t offset_ns = (uint64_t)link->clock_offset_ns;
    lane_slot slot = lane_reserve(lane, link->rates[direction], direction, size_bytes, now_ns - offset_ns,
                                  EMX_LINK_MOST_AHEAD_NS);
    slot.start_ns += offset_ns;
    slot.release_ns += offset_ns;
    return slot;
}

double link_utilisation(const emx_link* link, emx_direction direction, uint64_t now_ns) {
    emx_lane* lane = lane_of(link, direction);
    if (!is_real(link)) return lane_utilisation(lane, now_ns);
    const uint64_t here_ns = now_ns - (uint64_t)link->clock_offset_ns, free_ns = load(&lane->free_ns);
    return free_ns > here_ns && free_ns - here_ns > EMX_LINK_MOST_AHEAD_NS ? 0
                                                                           : lane_utilisation(lane, here_ns);
}

double link_latency_ns(const emx_link* link) { return link->page->latency_ns; }

double link_bandwidth_gbps(const emx_link* link, emx_direction direction) {
    return direction == EMX_READ ? link->page->read_bandwidth_gbps : link->page->write_bandwidth_gbps;
}
