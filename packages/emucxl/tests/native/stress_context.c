/* Threads that share a context: each moves its own allocations through every call and checks their bytes,
 * while others add tiers, watch the statistics, trim, and pin what is freed. Prints the operations done; ends
 * with 1 at the first mistake.
 *
 *     stress_context [seed] [operations per thread]
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "context/internal.h"
#include "emucxl.h"
#include "require.h"

enum { NUM_WORKERS = 4, NUM_SLOTS = 24, MOST_BYTES = 40000, TIER_BYTES = 32 << 20, SHARED_LINES = 64 };

static emx_context* context;
static unsigned char* shared; /* a line for each thread */
static _Atomic bool done;
static unsigned long operations_each = 4000;

typedef struct slot {
    unsigned char* pointer;
    size_t size_bytes;
    unsigned char first; /* byte i is first + i * 7 */
} slot;

typedef struct worker {
    pthread_t thread;
    uint64_t random;
    unsigned number;
    slot slots[NUM_SLOTS];
    unsigned char buffer[MOST_BYTES];
} worker;

static uint64_t draw(worker* worker, uint64_t below) { /* xorshift64* */
    worker->random ^= worker->random >> 12;
    worker->random ^= worker->random << 25;
    worker->random ^= worker->random >> 27;
    return worker->random * UINT64_C(0x2545f4914f6cdd1d) % below;
}

static emx_tier any_tier(worker* worker) { return (emx_tier)draw(worker, emx_tier_count(context)); }

static bool is_there(const slot* slot) {
    emx_allocation found;
    REQUIRE(emx_query(context, slot->pointer, &found) == EMX_OK && found.base == slot->pointer);
    REQUIRE(found.size_bytes == slot->size_bytes);
    return context->tiers[found.tier].touchable;
}

static void check(worker* worker, const slot* slot) {
    const bool has_bytes = is_there(slot);
    const size_t offset = draw(worker, slot->size_bytes), size = draw(worker, slot->size_bytes - offset + 1);
    REQUIRE(emx_read(context, slot->pointer, offset, worker->buffer, size) == EMX_OK);
    for (size_t i = 0; i < size; i++)
        REQUIRE(worker->buffer[i] == (has_bytes ? (unsigned char)(slot->first + (offset + i) * 7) : 0));
}

static void fill(worker* worker, slot* slot) {
    slot->first = (unsigned char)draw(worker, 256);
    for (size_t i = 0; i < slot->size_bytes; i++) worker->buffer[i] = (unsigned char)(slot->first + i * 7);
    if (draw(worker, 2) == 0) {
        REQUIRE(emx_write(context, slot->pointer, 0, worker->buffer, slot->size_bytes) == EMX_OK);
        return;
    }
    const size_t half = slot->size_bytes / 2;
    const emx_access both[] = {{slot->pointer, 0, worker->buffer, half},
                               {slot->pointer, half, worker->buffer + half, slot->size_bytes - half}};
    REQUIRE(emx_write_batch(context, both, 2) == EMX_OK);
}

static void make(worker* worker, slot* slot) {
    void* pointer;
    slot->size_bytes = 1 + draw(worker, draw(worker, 8) == 0 ? MOST_BYTES : 600);
    const emx_status status =
        emx_alloc(context, any_tier(worker), slot->size_bytes, (size_t)16 << draw(worker, 4), &pointer);
    if (status == EMX_E_TIER_FULL) return;
    REQUIRE(status == EMX_OK);
    slot->pointer = pointer;
    REQUIRE(emx_read(context, pointer, 0, worker->buffer, slot->size_bytes) == EMX_OK);
    for (size_t i = 0; i < slot->size_bytes; i++) REQUIRE(worker->buffer[i] == 0);
    fill(worker, slot);
}

static void drop(slot* slot) {
    REQUIRE(emx_free(context, slot->pointer) == EMX_OK);
    slot->pointer = NULL;
}

static void drop_pinned(slot* slot) {
    void* moved;
    REQUIRE(context_pin(context, slot->pointer) == EMX_OK);
    REQUIRE(emx_free(context, slot->pointer) == EMX_E_BUSY);
    REQUIRE(emx_migrate(context, slot->pointer, 0, &moved) == EMX_E_BUSY);
    REQUIRE(emx_resize(context, slot->pointer, 1, &moved) == EMX_E_BUSY);
    context_unpin(context, slot->pointer);
    drop(slot);
}

static void resize(worker* worker, slot* slot) {
    void* moved;
    const size_t size = 1 + draw(worker, slot->size_bytes + 300);
    if (size > MOST_BYTES) return;
    const emx_status status = emx_resize(context, slot->pointer, size, &moved);
    REQUIRE(status == EMX_OK || status == EMX_E_TIER_FULL);
    if (status != EMX_OK) return;
    const bool grown = size > slot->size_bytes;
    *slot = (struct slot){moved, size, slot->first};
    if (grown) fill(worker, slot);
}

/* A copy into the next slot, if it is large enough. */
static void copy(worker* worker, slot* from, slot* to) {
    if (to->pointer == NULL || to->size_bytes > from->size_bytes) return;
    REQUIRE(emx_copy(context, to->pointer, 0, from->pointer, 0, to->size_bytes) == EMX_OK);
    if (is_there(from)) to->first = from->first;
    else fill(worker, to);
}

static void migrate(worker* worker, slot* slot) {
    void* moved;
    const bool had_bytes = is_there(slot);
    const emx_status status = emx_migrate(context, slot->pointer, any_tier(worker), &moved);
    REQUIRE(status == EMX_OK || status == EMX_E_TIER_FULL);
    if (status != EMX_OK) return;
    slot->pointer = moved;
    if (!had_bytes) fill(worker, slot);
}

static void touch_shared(worker* worker) {
    const size_t offset = 64 * worker->number;
    uint64_t value = draw(worker, UINT64_MAX), found = 0;
    REQUIRE(emx_write(context, shared, offset, &value, sizeof value) == EMX_OK);
    REQUIRE(emx_read(context, shared, offset, &found, sizeof found) == EMX_OK);
    REQUIRE(found == value);
}

static void step(worker* worker) {
    const size_t at = draw(worker, NUM_SLOTS);
    slot* slot = &worker->slots[at];
    if (slot->pointer == NULL) return make(worker, slot);
    switch (draw(worker, 8)) {
        case 0:
            return drop(slot);
        case 1:
            return drop_pinned(slot);
        case 2:
            return resize(worker, slot);
        case 3:
            return copy(worker, slot, &worker->slots[(at + 1) % NUM_SLOTS]);
        case 4:
            return migrate(worker, slot);
        case 5:
            return fill(worker, slot);
        case 6:
            return touch_shared(worker);
        default:
            return check(worker, slot);
    }
}

static void* work(void* argument) {
    worker* worker = argument;
    for (unsigned long i = 0; i < operations_each; i++) step(worker);
    for (size_t i = 0; i < NUM_SLOTS; i++)
        if (worker->slots[i].pointer != NULL) drop(&worker->slots[i]);
    return NULL;
}

static void add_tier(const char* name, uint32_t provider) {
    const emx_tier_config config = {.struct_bytes = sizeof config,
                                    .provider = provider,
                                    .name = name,
                                    .capacity_bytes = TIER_BYTES,
                                    .fd = -1};
    emx_tier tier;
    REQUIRE(emx_tier_add(context, &config, &tier) == EMX_OK);
}

/* Adds tiers while the others work, and watches. */
static void* watch(void* unused) {
    char name[16];
    for (int i = 2; !atomic_load(&done); i++) {
        if (i < 6) {
            snprintf(name, sizeof name, "t%d", i);
            add_tier(name, i % 2 == 0 ? EMX_PROVIDER_SHM : i == 3 ? EMX_PROVIDER_NULL : EMX_PROVIDER_ANON);
        }
        for (emx_tier tier = 0; tier < emx_tier_count(context); tier++) {
            emx_tier_stats stats;
            REQUIRE(emx_tier_get_stats(context, tier, &stats) == EMX_OK);
            REQUIRE(stats.reserved_bytes <= stats.capacity_bytes);
            REQUIRE(emx_tier_trim(context, tier) == EMX_OK);
        }
        REQUIRE(emx_context_check(context) == EMX_OK);
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    return unused;
}

int main(int argc, char** argv) {
    static worker workers[NUM_WORKERS];
    const uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    if (argc > 2) operations_each = strtoul(argv[2], NULL, 0);
    void* pointer;
    pthread_t watcher;
    REQUIRE(emx_context_open(NULL, &context) == EMX_OK);
    add_tier("t0", EMX_PROVIDER_ANON);
    add_tier("t1", EMX_PROVIDER_SHM);
    REQUIRE(emx_alloc(context, 0, 64 * SHARED_LINES, 64, &pointer) == EMX_OK);
    shared = pointer;
    for (unsigned i = 0; i < NUM_WORKERS; i++) {
        workers[i].random = (seed + i) * UINT64_C(0x9e3779b97f4a7c15) | 1;
        workers[i].number = i;
        pthread_create(&workers[i].thread, NULL, work, &workers[i]);
    }
    pthread_create(&watcher, NULL, watch, NULL);
    for (unsigned i = 0; i < NUM_WORKERS; i++) pthread_join(workers[i].thread, NULL);
    atomic_store(&done, true);
    pthread_join(watcher, NULL);
    REQUIRE(emx_context_check(context) == EMX_OK);
    REQUIRE(emx_free(context, shared) == EMX_OK);
    for (emx_tier tier = 0; tier < emx_tier_count(context); tier++) {
        emx_tier_stats stats;
        REQUIRE(emx_tier_get_stats(context, tier, &stats) == EMX_OK);
        REQUIRE(stats.num_allocations == 0 && stats.allocated_bytes == 0);
    }
    emx_context_close(context);
    REQUIRE(emx_alloc(context, 0, 1, 0, &pointer) == EMX_E_CLOSED);
    printf("%lu operations\n", NUM_WORKERS * operations_each);
    return 0;
}
