/* Statistics of tiers, kept in the page that `emucxl top` reads. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "context_internal.h"
#include "fail.h"
#include "prim/memory.h"

enum { CALLS_BETWEEN_SHOWS = 64 };

static void add(uint64_t *counter, uint64_t value) { __atomic_fetch_add(counter, value, __ATOMIC_RELAXED); }
static uint64_t load(const uint64_t *counter) { return __atomic_load_n(counter, __ATOMIC_RELAXED); }
static void store(uint64_t *counter, uint64_t value) { __atomic_store_n(counter, value, __ATOMIC_RELAXED); }

emx_status monitor_open(emx_context *context, uint32_t clock) {
  void *base = NULL;
  context->monitor_fd = -1;
  if (memory_create_file(EMX_MONITOR_NAME, sizeof(emx_monitor_page), &context->monitor_fd) == 0 &&
      memory_map_anywhere(sizeof(emx_monitor_page), context->monitor_fd, &base) != 0) {
    close(context->monitor_fd);
    context->monitor_fd = -1;
  }
  if (base == NULL) base = calloc(1, sizeof(emx_monitor_page));
  if (base == NULL) return fail(EMX_E_NO_MEMORY, "no memory for the %zu bytes of a monitor page", sizeof(emx_monitor_page));
  emx_monitor_page *page = context->monitor = base;
  page->version = EMX_MONITOR_VERSION;
  page->page_bytes = sizeof *page;
  page->pid = (uint32_t)getpid();
  page->clock = clock;
  __atomic_store_n(&page->magic, EMX_MONITOR_MAGIC, __ATOMIC_RELEASE);
  return EMX_OK;
}

void monitor_close(emx_context *context) {
  if (context->monitor_fd < 0) {
    free(context->monitor);
  } else {
    memory_release(context->monitor, sizeof *context->monitor);
    close(context->monitor_fd);
  }
  context->monitor = NULL;
}

void monitor_add_tier(emx_context *context, tier *tier) {
  emx_monitor_tier *shown = tier->monitor = &context->monitor->tiers[tier->number];
  memcpy(shown->name, tier->name, sizeof shown->name);
  shown->modelled = tier->path != NULL;
  shown->capacity_bytes = tier->pages.capacity_bytes;
  tier_show(tier);
}

/* Threads take shards in turn: as long as there are no more of them than shards, none waits for another's line. */
static emx_monitor_counters *own_shard(tier *tier) {
  static _Atomic unsigned threads;
  static _Thread_local unsigned own __attribute__((tls_model("initial-exec")));
  if (__builtin_expect(own == 0, 0)) own = 1 + atomic_fetch_add(&threads, 1) % EMX_MONITOR_SHARDS;
  return &tier->monitor->shards[own - 1];
}

void tier_count(tier *tier, emx_direction direction, size_t size_bytes, uint64_t delayed_ns) {
  emx_monitor_counters *shard = own_shard(tier);
  add(direction == EMX_READ ? &shard->read_bytes : &shard->write_bytes, size_bytes);
  add(direction == EMX_READ ? &shard->read_accesses : &shard->write_accesses, 1);
  if (delayed_ns > 0) add(&shard->delayed_ns, delayed_ns);
}

void monitor_sum(const tier *tier, emx_tier_stats *stats) {
  for (uint32_t i = 0; i < EMX_MONITOR_SHARDS; i++) {
    const emx_monitor_counters *shard = &tier->monitor->shards[i];
    stats->read_bytes += load(&shard->read_bytes);
    stats->write_bytes += load(&shard->write_bytes);
    stats->read_accesses += load(&shard->read_accesses);
    stats->write_accesses += load(&shard->write_accesses);
    stats->delayed_ns += load(&shard->delayed_ns);
  }
}

void tier_show(tier *tier) {
  heap_stats stats;
  heap_get_stats(tier->heap, &stats);
  store(&tier->monitor->allocated_bytes, stats.allocated_bytes);
  store(&tier->monitor->reserved_bytes, stats.reserved_bytes);
  store(&tier->monitor->num_allocations, stats.num_allocations);
}

void tier_show_sometimes(tier *tier) {
  static _Thread_local unsigned calls __attribute__((tls_model("initial-exec")));
  if (++calls % CALLS_BETWEEN_SHOWS == 1) tier_show(tier);
}
