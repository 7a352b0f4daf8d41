/* The timing model: what an access costs, which queue it waits in, and on which clock.
 *
 * An access of `size` bytes that begins at `now` ends at
 *     release = max over its queues q of (max(now, free_q) + size / bandwidth_q)
 *               + latency * curve(utilisation) + switch_hops * hop_latency + link latency
 * The queues are the tier's own (one for reads, one for writes) and, where it has one, its link's. A link's
 * state lies in shared memory, so that all who use it (tiers, threads, processes) wait for each other.
 *
 * Whatever these functions produce is *modelled*; say so wherever it is shown.
 */
#ifndef EMUCXL_TIMING_H
#define EMUCXL_TIMING_H

#include <stdbool.h>

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum emx_direction { EMX_READ = 0, EMX_WRITE = 1 } emx_direction;

#define EMX_MAX_CURVE_POINTS 8

/* The load curve: at `utilisation` (0 to 1) of the busiest queue, latency is multiplied by `latency_factor`
 * (>= 1). Points ascend in both; between them the factor is interpolated linearly, outside them it is that of
 * the end. */
typedef struct emx_curve_point {
    double utilisation;
    double latency_factor;
} emx_curve_point;

/* The timing of a tier. All zero: the tier is not modelled, and its accesses take what the machine takes. */
typedef struct emx_timing {
    double read_latency_ns; /* of one small access, unloaded, all included; 0: the machine's own */
    double write_latency_ns;
    double read_bandwidth_gbps; /* of the tier's own queue; 0: unlimited */
    double write_bandwidth_gbps;
    double hop_latency_ns; /* added once for each switch on the way */
    uint32_t switch_hops;
    uint32_t num_curve_points; /* 0: latency does not depend on load */
    emx_curve_point curve[EMX_MAX_CURVE_POINTS];
} emx_timing;

/* ---- links --------------------------------------------------------------------------------------------- */

/* A link follows one kind of clock: that of the first tier that uses it. On the real clock its users wait for
 * each other as they would on hardware. On virtual clocks each context brings its own time, and waits for
 * whatever was queued before it *in the order of the calls*, up to times that lie ahead of its own: use a
 * fresh link for each simulation. */
typedef struct emx_link emx_link;

typedef struct emx_link_config {
    uint32_t struct_bytes;
    uint32_t full_duplex;       /* 1: reads and writes queue apart, as on PCIe; 0: they share one queue */
    double read_bandwidth_gbps; /* 0.001 to 100,000 */
    double write_bandwidth_gbps;
    double latency_ns; /* >= 0, added to every transfer */
} emx_link_config;

typedef struct emx_link_stats {
    uint64_t read_bytes, write_bytes;
    uint64_t read_transfers, write_transfers;
    uint64_t read_busy_ns, write_busy_ns;       /* modelled time that the queue was occupied */
    uint64_t queued_ns;                         /* modelled time that transfers waited for others */
    double read_utilisation, write_utilisation; /* of the recent past, 0 to 1 */
} emx_link_stats;

/* A link of this process and of those that inherit emx_link_fd(): in a memfd, which dies with its last user.
 */
EMX_API emx_status emx_link_create(const emx_link_config* config, emx_link** link);
/* The link behind a descriptor that another process passed on. The descriptor stays the caller's. */
EMX_API emx_status emx_link_attach(int fd, emx_link** link);
/* The link in the file at `path` (mode 0600), made if there is none. An existing one must have the same
 * config (EMX_E_EXISTS otherwise); `config` may be NULL to take it as it is. */
EMX_API emx_status emx_link_open(const char* path, const emx_link_config* config, emx_link** link);
EMX_API int emx_link_fd(const emx_link* link);
EMX_API void emx_link_close(emx_link* link); /* a tier that uses the link keeps it alive */
EMX_API emx_status emx_link_get_config(const emx_link* link, emx_link_config* config);
EMX_API emx_status emx_link_get_stats(const emx_link* link, emx_link_stats* stats);

/* Queues `size_bytes` from `now_ns` on and tells when the last byte is there. Does not wait. */
EMX_API emx_status emx_link_reserve(emx_link* link, emx_direction direction, uint64_t size_bytes,
                                    uint64_t now_ns, uint64_t* release_ns);

/* ---- time ---------------------------------------------------------------------------------------------- */

/* The real clock (CLOCK_MONOTONIC), common to all processes of a machine. */
EMX_API uint64_t emx_now_ns(void);
/* Returns at `deadline_ns` of the real clock: sleeps while that is far, spins for the rest. */
EMX_API void emx_wait_until(uint64_t deadline_ns);

/* ---- calibration --------------------------------------------------------------------------------------- */

/* The machine's own speed, measured through the same calls that the model will delay. */
typedef struct emx_calibration {
    uint32_t struct_bytes;
    uint32_t num_cores;                       /* that this process may run on */
    double read_latency_ns, write_latency_ns; /* a 64-byte access to memory that is in no cache, median */
    double read_bandwidth_gbps, write_bandwidth_gbps; /* one thread, undisturbed (90th percentile) */
    double clock_overhead_ns;                         /* of reading the clock once */
    double sleep_overshoot_ns;                        /* how late a sleep ends, 99th percentile */
    double exit_overhead_ns;                          /* from the end of a delay to the caller */
    double latency_error; /* of the median of reads at the least latency promised, as a fraction of it, when
                             tried out */
    /* 0; or, where the machine's own + EMX_PROMISED_MARGIN_NS was missed by more than EMX_PROMISED_ERROR, the
     * least latency that was not, and that may be asked for. */
    double least_latency_ns;
} emx_calibration;

/* The promise: from this much above the machine's own latency on, medians are within that fraction of what
 * was modelled. */
#define EMX_PROMISED_MARGIN_NS 250.0
#define EMX_PROMISED_ERROR 0.05

/* Measures for about `budget_ns` (100 ms to 10 s), and tries out what it found. */
EMX_API emx_status emx_calibrate(uint64_t budget_ns, emx_calibration* calibration);
/* EMX_E_TOO_FAST, naming the figure and what would do, unless this machine can play `timing`: no latency
 * below its own, no bandwidth above that of all its cores together (one thread alone never gets more than its
 * own). */
EMX_API emx_status emx_check_timing(const emx_calibration* calibration, const emx_timing* timing);

#ifdef __cplusplus
}
#endif
#endif
