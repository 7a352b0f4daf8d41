/* Calibration: the floor of what the model can play, measured through the calls that it delays. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "emucxl/context.h"
#include "fail.h"
#include "prim/cache.h"
#include "prim/clock.h"
#include "stopwatch.h"

#define FIELD_BYTES (128ull << 20) /* random lines of this are in no cache, nor are their addresses in a TLB */
#define CHUNK_BYTES (256ull << 10) /* some 20 us: short enough to run undisturbed on a busy machine too */
#define PROBE_NS 2000.0            /* the delay that is played to see what calls take besides */
#define LEAST_BUDGET_NS 100000000ull
#define MOST_BUDGET_NS 10000000000ull
#define NUM_LINES 2048
#define NUM_ROUNDS_MAX 4000

typedef struct bench {
  emx_context *context;
  emx_tier floor_tier; /* priced, but at less than anything takes: the calls themselves */
  emx_tier probe_tier; /* PROBE_NS */
  char *field, *probe, *chunk;
  uint64_t random;
  double overhead_ns; /* of the stopwatch */
} bench;

static size_t random_line(bench *bench) {
  bench->random = bench->random * 6364136223846793005ull + 1442695040888963407ull;
  return (bench->random >> 33) % (FIELD_BYTES / CACHE_LINE_BYTES) * CACHE_LINE_BYTES;
}

typedef emx_status access_call(bench *bench, size_t offset, char *line);

static emx_status read_field(bench *bench, size_t offset, char *line) {
  return emx_read(bench->context, bench->field, offset, line, CACHE_LINE_BYTES);
}

static emx_status write_field(bench *bench, size_t offset, char *line) {
  return emx_write(bench->context, bench->field, offset, line, CACHE_LINE_BYTES);
}

static emx_status read_probe(bench *bench, size_t offset, char *line) {
  (void)offset;
  return emx_read(bench->context, bench->probe, 0, line, CACHE_LINE_BYTES);
}

/* The median of single accesses, each to a line that is in no cache; the probe's delay hides where that lies. */
static emx_status median_access_ns(bench *bench, access_call *call, size_t num_samples, double *median_ns) {
  double *samples = malloc(num_samples * sizeof *samples);
  if (samples == NULL) return fail(EMX_E_NO_MEMORY, "no memory for %zu samples", num_samples);
  char line[CACHE_LINE_BYTES] = {0};
  emx_status status = EMX_OK;
  for (size_t i = 0; i < num_samples && status == EMX_OK; i++) {
    size_t offset = random_line(bench);
    if (call != read_probe) {
      cache_flush_line(bench->field + offset);
      cache_flush_done();
    }
    uint64_t begin = clock_ticks_in_order();
    status = call(bench, offset, line);
    samples[i] = stopwatch_ns(begin) - bench->overhead_ns;
  }
  if (status == EMX_OK) *median_ns = quantile(samples, num_samples, 0.5);
  free(samples);
  return status;
}

/* The least of several turns' medians: what disturbs a turn only slows it down, and a whole turn may be disturbed. */
static emx_status undisturbed_access_ns(bench *bench, access_call *call, size_t num_samples, double *least_ns) {
  enum { NUM_TURNS = 5 };
  *least_ns = INFINITY;
  for (int turn = 0; turn < NUM_TURNS; turn++) {
    double median_ns;
    const emx_status status = median_access_ns(bench, call, num_samples / NUM_TURNS + 1, &median_ns);
    if (status != EMX_OK) return status;
    *least_ns = fmin(*least_ns, median_ns);
  }
  return EMX_OK;
}

/* The rate of reading or writing chunks all over the field that 90 % do not exceed: what disturbs only slows down. */
static emx_status undisturbed_bandwidth(bench *bench, emx_direction direction, uint64_t budget_ns, double *gbps) {
  double rates[NUM_ROUNDS_MAX];
  size_t num_rates = 0;
  emx_status status = EMX_OK;
  for (uint64_t end_ns = clock_read_ns() + budget_ns, now_ns = 0; now_ns < end_ns && num_rates < NUM_ROUNDS_MAX;) {
    size_t offset = num_rates % (FIELD_BYTES / CHUNK_BYTES) * CHUNK_BYTES;
    uint64_t begin_ns = clock_read_ns();
    status = direction == EMX_READ ? emx_read(bench->context, bench->field, offset, bench->chunk, CHUNK_BYTES)
                                   : emx_write(bench->context, bench->field, offset, bench->chunk, CHUNK_BYTES);
    if (status != EMX_OK) return status;
    now_ns = clock_read_ns();
    rates[num_rates++] = (double)CHUNK_BYTES / (double)(now_ns - begin_ns);
  }
  *gbps = quantile(rates, num_rates, 0.9);
  return EMX_OK;
}

static double overshoot_ns(uint64_t budget_ns) {
  double late[NUM_ROUNDS_MAX];
  size_t num_late = 0;
  for (uint64_t end_ns = clock_read_ns() + budget_ns, now_ns = 0; now_ns < end_ns && num_late < NUM_ROUNDS_MAX;) {
    uint64_t deadline_ns = clock_read_ns() + 200000;
    clock_sleep_until(deadline_ns);
    now_ns = clock_read_ns();
    late[num_late++] = (double)(now_ns - deadline_ns);
  }
  return quantile(late, num_late, 0.99);
}

static double clock_overhead_ns(void) {
  enum { NUM_READS = 1000, NUM_SAMPLES = 21 };
  double samples[NUM_SAMPLES];
  for (int i = 0; i < NUM_SAMPLES; i++) {
    uint64_t begin_ns = clock_read_ns(), now_ns = begin_ns;
    for (int j = 0; j < NUM_READS; j++) now_ns = clock_read_ns();
    samples[i] = (double)(now_ns - begin_ns) / NUM_READS;
  }
  return quantile(samples, NUM_SAMPLES, 0.5);
}

static emx_status add_tier(bench *bench, const char *name, size_t size_bytes, double latency_ns, emx_tier *tier,
                           char **memory) {
  emx_tier_config config = {
      .struct_bytes = sizeof config, .name = name, .capacity_bytes = size_bytes + (4u << 20), .fd = -1};
  config.timing.read_latency_ns = config.timing.write_latency_ns = latency_ns;
  emx_status status = emx_tier_add(bench->context, &config, tier);
  void *pointer = NULL;
  if (status == EMX_OK) status = emx_alloc(bench->context, *tier, size_bytes, 0, &pointer);
  *memory = pointer;
  return status;
}

static emx_status open_bench(bench *bench) {
  /* Nothing is known yet: every timing is accepted, and nothing subtracted. */
  const emx_calibration none = {.struct_bytes = sizeof none, .read_bandwidth_gbps = 1e9, .write_bandwidth_gbps = 1e9};
  const emx_context_config config = {.struct_bytes = sizeof config, .clock = EMX_CLOCK_REAL, .calibration = &none};
  *bench = (struct bench){.random = 1, .chunk = malloc(CHUNK_BYTES)};
  if (bench->chunk == NULL) return fail(EMX_E_NO_MEMORY, "no memory for a buffer of %llu bytes", CHUNK_BYTES);
  emx_status status = emx_context_open(&config, &bench->context);
  if (status == EMX_OK) status = add_tier(bench, "calibration", FIELD_BYTES, 1, &bench->floor_tier, &bench->field);
  if (status == EMX_OK)
    status = add_tier(bench, "probe", CACHE_LINE_BYTES, PROBE_NS, &bench->probe_tier, &bench->probe);
  if (status != EMX_OK) return status;
  memset(bench->field, 1, FIELD_BYTES);
  memset(bench->chunk, 2, CHUNK_BYTES);
  bench->overhead_ns = stopwatch_overhead_ns();
  return EMX_OK;
}

static emx_status measure(bench *bench, uint64_t budget_ns, emx_calibration *result) {
  size_t num_samples = NUM_LINES * (budget_ns / LEAST_BUDGET_NS);
  double probe_ns = 0;
  emx_status status = undisturbed_access_ns(bench, read_field, num_samples, &result->read_latency_ns);
  if (status == EMX_OK) status = undisturbed_access_ns(bench, write_field, num_samples, &result->write_latency_ns);
  if (status == EMX_OK) status = undisturbed_access_ns(bench, read_probe, num_samples, &probe_ns);
  if (status == EMX_OK) status = undisturbed_bandwidth(bench, EMX_READ, budget_ns / 5, &result->read_bandwidth_gbps);
  if (status == EMX_OK) status = undisturbed_bandwidth(bench, EMX_WRITE, budget_ns / 5, &result->write_bandwidth_gbps);
  if (status != EMX_OK) return status;
  result->exit_overhead_ns = probe_ns > PROBE_NS ? probe_ns - PROBE_NS : 0;
  result->clock_overhead_ns = clock_overhead_ns();
  result->sleep_overshoot_ns = overshoot_ns(budget_ns / 10);
  return EMX_OK;
}

emx_status emx_calibrate(uint64_t budget_ns, emx_calibration *calibration) {
  if (calibration == NULL) return fail(EMX_E_INVALID, "got NULL; expected a place for the calibration");
  if (budget_ns < LEAST_BUDGET_NS || budget_ns > MOST_BUDGET_NS)
    return fail(EMX_E_INVALID, "got a budget of %llu ns; expected %llu to %llu", (unsigned long long)budget_ns,
                LEAST_BUDGET_NS, MOST_BUDGET_NS);
  bench bench;
  emx_calibration result = {.struct_bytes = sizeof result, .num_cores = clock_usable_cores()};
  emx_status status = open_bench(&bench);
  if (status == EMX_OK) status = measure(&bench, budget_ns, &result);
  if (bench.context != NULL) emx_context_close(bench.context);
  free(bench.chunk);
  if (status == EMX_OK) *calibration = result;
  return status;
}
