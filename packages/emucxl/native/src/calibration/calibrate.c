/* Calibration: the floor of what the model can play, measured through the calls that it delays; and how well
 * it plays then.
 *
 * Another load on the machine, or on the other half of this core, only slows things down, for some
 * milliseconds or for long. So every figure is taken in rounds that take turns over the whole budget, and is
 * a low quantile of them. What was found is then tried out: reads of modelled tiers are timed as a program's
 * would be, the overhead is put right by what they miss, and what is missed in the end is told. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calibration/stopwatch.h"
#include "context/internal.h"
#include "emucxl/measure.h"
#include "fail.h"
#include "prim/cache.h"
#include "prim/clock.h"

#define FIELD_BYTES \
    (128ull << 20) /* random lines of this are in no cache, nor are their addresses in a TLB */
#define CHUNK_BYTES (256ull << 10) /* some 20 us: short enough to run undisturbed on a busy machine too */
#define PROBE_NS 2000.0            /* the delay that is played to see what calls take besides */
#define LEAST_BUDGET_NS 100000000ull
#define MOST_BUDGET_NS 10000000000ull
#define NUM_RATES_MAX 4000
#define CHECK_BYTES (1ull << 20)

enum { NUM_ROUNDS = 16, NUM_CHECKS = 6, CHECK_ROUNDS = 9, CHECK_SAMPLES = 151, MOST_CORRECTIONS = 4 };
static const double CHECKED_MARGINS_NS[NUM_CHECKS] = {EMX_PROMISED_MARGIN_NS, 500, 1000, 2000, 4000, 8000};
#define UNDISTURBED 0.25 /* the quantile of rounds that others left alone */

typedef struct bench {
    emx_context* context;
    emx_tier floor_tier; /* priced, but at less than anything takes: the calls themselves */
    emx_tier probe_tier; /* PROBE_NS */
    char *field, *probe, *chunk;
    uint64_t random;
    double overhead_ns; /* of the stopwatch */
} bench;

static size_t random_line(bench* bench) {
    bench->random = bench->random * 6364136223846793005ull + 1442695040888963407ull;
    return (bench->random >> 33) % (FIELD_BYTES / CACHE_LINE_BYTES) * CACHE_LINE_BYTES;
}

typedef emx_status access_call(bench* bench, size_t offset, char* line);

static emx_status read_field(bench* bench, size_t offset, char* line) {
    return emx_read(bench->context, bench->field, offset, line, CACHE_LINE_BYTES);
}

static emx_status write_field(bench* bench, size_t offset, char* line) {
    return emx_write(bench->context, bench->field, offset, line, CACHE_LINE_BYTES);
}

static emx_status read_probe(bench* bench, size_t offset, char* line) {
    (void)offset;
    return emx_read(bench->context, bench->probe, 0, line, CACHE_LINE_BYTES);
}

/* The median of single accesses, each to a line that is in no cache; the probe's delay hides where that lies.
 */
static emx_status median_access_ns(bench* bench, access_call* call, size_t num_samples, double* median_ns) {
    double* samples = malloc(num_samples * sizeof *samples);
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

typedef struct rates {
    double gbps[NUM_RATES_MAX];
    size_t count;
} rates;

/* One round of reading or writing chunks all over the field. */
static emx_status add_rates(bench* bench, emx_direction direction, uint64_t budget_ns, rates* rates) {
    for (uint64_t end_ns = clock_read_ns() + budget_ns, now_ns = 0;
         now_ns < end_ns && rates->count < NUM_RATES_MAX;) {
        size_t offset = rates->count % (FIELD_BYTES / CHUNK_BYTES) * CHUNK_BYTES;
        uint64_t begin_ns = clock_read_ns();
        const emx_status status =
            direction == EMX_READ
                ? emx_read(bench->context, bench->field, offset, bench->chunk, CHUNK_BYTES)
                : emx_write(bench->context, bench->field, offset, bench->chunk, CHUNK_BYTES);
        if (status != EMX_OK) return status;
        now_ns = clock_read_ns();
        rates->gbps[rates->count++] = (double)CHUNK_BYTES / (double)(now_ns - begin_ns);
    }
    return EMX_OK;
}

static double overshoot_ns(uint64_t budget_ns) {
    double late[NUM_RATES_MAX];
    size_t num_late = 0;
    for (uint64_t end_ns = clock_read_ns() + budget_ns, now_ns = 0;
         now_ns < end_ns && num_late < NUM_RATES_MAX;) {
        uint64_t deadline_ns = clock_read_ns() + 200000;
        clock_sleep_until(deadline_ns, NULL);
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

static emx_status add_tier(bench* bench, const char* name, size_t size_bytes, double latency_ns,
                           emx_tier* tier, char** memory) {
    emx_tier_config config = {
        .struct_bytes = sizeof config, .name = name, .capacity_bytes = size_bytes + (4u << 20), .fd = -1};
    config.timing.read_latency_ns = config.timing.write_latency_ns = latency_ns;
    emx_status status = emx_tier_add(bench->context, &config, tier);
    void* pointer = NULL;
    if (status == EMX_OK) status = emx_alloc(bench->context, *tier, size_bytes, 0, &pointer);
    *memory = pointer;
    return status;
}

static emx_status open_bench(bench* bench) {
    /* Nothing is known yet: every timing is accepted, and nothing subtracted. */
    const emx_calibration none = {
        .struct_bytes = sizeof none, .read_bandwidth_gbps = 1e9, .write_bandwidth_gbps = 1e9};
    const emx_context_config config = {
        .struct_bytes = sizeof config, .clock = EMX_CLOCK_REAL, .calibration = &none};
    *bench = (struct bench){.random = 1, .chunk = malloc(CHUNK_BYTES)};
    if (bench->chunk == NULL)
        return fail(EMX_E_NO_MEMORY, "no memory for a buffer of %llu bytes", CHUNK_BYTES);
    emx_status status = emx_context_open(&config, &bench->context);
    if (status == EMX_OK)
        status = add_tier(bench, "calibration", FIELD_BYTES, 1, &bench->floor_tier, &bench->field);
    if (status == EMX_OK)
        status = add_tier(bench, "probe", CACHE_LINE_BYTES, PROBE_NS, &bench->probe_tier, &bench->probe);
    if (status != EMX_OK) return status;
    memset(bench->field, 1, FIELD_BYTES);
    memset(bench->chunk, 2, CHUNK_BYTES);
    bench->overhead_ns = stopwatch_overhead_ns();
    return EMX_OK;
}

typedef struct rounds {
    double read_ns[NUM_ROUNDS], write_ns[NUM_ROUNDS], probe_ns[NUM_ROUNDS];
    rates reads, writes;
} rounds;

static emx_status measure(bench* bench, uint64_t budget_ns, rounds* rounds, emx_calibration* result) {
    const size_t num_samples = 64 * (budget_ns / LEAST_BUDGET_NS) + 64;
    const uint64_t slice_ns = budget_ns / 5 / NUM_ROUNDS;
    emx_status status = EMX_OK;
    for (int i = 0; i < NUM_ROUNDS && status == EMX_OK; i++) {
        status = median_access_ns(bench, read_field, num_samples, &rounds->read_ns[i]);
        if (status == EMX_OK)
            status = median_access_ns(bench, write_field, num_samples, &rounds->write_ns[i]);
        if (status == EMX_OK) status = median_access_ns(bench, read_probe, num_samples, &rounds->probe_ns[i]);
        if (status == EMX_OK) status = add_rates(bench, EMX_READ, slice_ns, &rounds->reads);
        if (status == EMX_OK) status = add_rates(bench, EMX_WRITE, slice_ns, &rounds->writes);
    }
    if (status != EMX_OK) return status;
    result->read_latency_ns = quantile(rounds->read_ns, NUM_ROUNDS, UNDISTURBED);
    result->write_latency_ns = quantile(rounds->write_ns, NUM_ROUNDS, UNDISTURBED);
    result->read_bandwidth_gbps = quantile(rounds->reads.gbps, rounds->reads.count, 0.9);
    result->write_bandwidth_gbps = quantile(rounds->writes.gbps, rounds->writes.count, 0.9);
    result->exit_overhead_ns = fmax(0, quantile(rounds->probe_ns, NUM_ROUNDS, UNDISTURBED) - PROBE_NS);
    result->clock_overhead_ns = clock_overhead_ns();
    result->sleep_overshoot_ns = overshoot_ns(budget_ns / 10);
    return EMX_OK;
}

/* ---- trying it out ------------------------------------------------------------------------------------- */

typedef struct check {
    double target_ns;
    char* memory;
    double medians_ns[CHECK_ROUNDS];
    double found_ns; /* when nobody disturbs */
} check;

static emx_status open_checks(bench* bench, double read_latency_ns, check checks[NUM_CHECKS]) {
    emx_status status = EMX_OK;
    for (int i = 0; i < NUM_CHECKS && status == EMX_OK; i++) {
        emx_tier tier;
        char name[] = {'c', 'h', 'e', 'c', 'k', ' ', (char)('0' + i), 0};
        checks[i].target_ns = read_latency_ns + CHECKED_MARGINS_NS[i];
        status = add_tier(bench, name, CHECK_BYTES, checks[i].target_ns, &tier, &checks[i].memory);
        if (status == EMX_OK) memset(checks[i].memory, 1, CHECK_BYTES);
    }
    return status;
}

static emx_status run_checks(bench* bench, check checks[NUM_CHECKS]) {
    double samples[CHECK_SAMPLES];
    for (int round = 0; round < CHECK_ROUNDS; round++)
        for (int i = 0; i < NUM_CHECKS; i++) {
            const emx_status status = emx_measure_reads(bench->context, checks[i].memory, CACHE_LINE_BYTES, 0,
                                                        CHECK_SAMPLES, samples);
            if (status != EMX_OK) return status;
            checks[i].medians_ns[round] = quantile(samples, CHECK_SAMPLES, 0.5);
        }
    for (int i = 0; i < NUM_CHECKS; i++)
        checks[i].found_ns = quantile(checks[i].medians_ns, CHECK_ROUNDS, UNDISTURBED);
    return EMX_OK;
}

static double miss(const check* check) { return check->found_ns / check->target_ns - 1; }

/* From which check on all are within the promise: NUM_CHECKS if the last one is not. */
static int first_kept(const check checks[NUM_CHECKS]) {
    int first = NUM_CHECKS;
    while (first > 0 && fabs(miss(&checks[first - 1])) <= EMX_PROMISED_ERROR) first--;
    return first;
}

/* The least latency that may be asked for when `first` is the first check that was kept; 0: the machine's
 * own. */
static double least_latency_ns(const check checks[NUM_CHECKS], int first) {
    if (first == 0) return 0;
    return first < NUM_CHECKS ? checks[first].target_ns : 2 * checks[NUM_CHECKS - 1].target_ns;
}

/* Sets the overhead right by what the nearest target misses, until that is a fifth of the promise or nothing
 * gets better. */
static emx_status verify(bench* bench, emx_calibration* result) {
    check checks[NUM_CHECKS] = {0};
    double best_ns = result->exit_overhead_ns, least_miss = INFINITY;
    emx_status status = open_checks(bench, result->read_latency_ns, checks);
    for (int i = 0; status == EMX_OK && i <= MOST_CORRECTIONS; i++) {
        bench->context->clock.exit_overhead_ns = result->exit_overhead_ns;
        status = run_checks(bench, checks);
        const double missed = miss(&checks[0]);
        if (fabs(missed) >= least_miss) {
            result->exit_overhead_ns = best_ns;
            break;
        }
        least_miss = fabs(missed);
        best_ns = result->exit_overhead_ns;
        const int first = first_kept(checks);
        result->latency_error = first < NUM_CHECKS ? miss(&checks[first]) : missed;
        result->least_latency_ns = least_latency_ns(checks, first);
        if (least_miss <= EMX_PROMISED_ERROR / 5) break;
        result->exit_overhead_ns =
            fmax(0, result->exit_overhead_ns + checks[0].found_ns - checks[0].target_ns);
    }
    return status;
}

emx_status emx_calibrate(uint64_t budget_ns, emx_calibration* calibration) {
    if (calibration == NULL) return fail(EMX_E_INVALID, "got NULL; expected a place for the calibration");
    if (budget_ns < LEAST_BUDGET_NS || budget_ns > MOST_BUDGET_NS)
        return fail(EMX_E_INVALID, "got a budget of %llu ns; expected %llu to %llu",
                    (unsigned long long)budget_ns, LEAST_BUDGET_NS, MOST_BUDGET_NS);
    bench bench;
    emx_calibration result = {.struct_bytes = sizeof result, .num_cores = clock_usable_cores()};
    rounds* rounds = calloc(1, sizeof *rounds);
    emx_status status = open_bench(&bench);
    if (status == EMX_OK && rounds == NULL)
        status = fail(EMX_E_NO_MEMORY, "no memory for %zu bytes of samples", sizeof *rounds);
    if (status == EMX_OK) status = measure(&bench, budget_ns, rounds, &result);
    if (status == EMX_OK) status = verify(&bench, &result);
    free(rounds);
    if (bench.context != NULL) emx_context_close(bench.context);
    free(bench.chunk);
    if (status == EMX_OK) *calibration = result;
    return status;
}
