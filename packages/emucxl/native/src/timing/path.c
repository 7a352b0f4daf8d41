#include "timing/path.h"

#include <math.h>
#include <stdlib.h>

#include "fail.h"
#include "handle.h"
#include "timing/link.h"
#include "timing/timing.h"

/* 20 to 40 us of the queue: long enough that its bookkeeping (some 100 ns) does not show, short enough that
 * one who comes in between hardly notices. A power of two, so that transfers of the usual sizes are made of
 * whole pieces. */
#define PIECE_NS 20000.0
#define LEAST_PIECE_BYTES 4096.0
#define MOST_PIECE_BYTES 65536.0

struct path {
    emx_lane own[2]; /* by direction; idle where the rate is 0 */
    lane_rate own_rates[2];
    emx_link* link;       /* or NULL */
    double latency_ns[2]; /* what the curve multiplies */
    double constant_ns;   /* hops and link */
    size_t piece_bytes;
    emx_timing timing;
};

static double slower(double left_gbps, double right_gbps) {
    if (left_gbps == 0) return right_gbps;
    return right_gbps == 0 || left_gbps < right_gbps ? left_gbps : right_gbps;
}

static size_t piece_of(const emx_timing* timing, const emx_link* link) {
    double gbps = link != NULL
                      ? slower(link_bandwidth_gbps(link, EMX_READ), link_bandwidth_gbps(link, EMX_WRITE))
                      : slower(timing->read_bandwidth_gbps, timing->write_bandwidth_gbps);
    double bytes = gbps > 0 ? gbps * PIECE_NS : MOST_PIECE_BYTES;
    return (size_t)exp2(ceil(log2(fmin(fmax(bytes, LEAST_PIECE_BYTES), MOST_PIECE_BYTES))));
}

static emx_status check(const emx_timing* timing, const emx_calibration* calibration, bool real_clock) {
    emx_status status = timing_validate(timing);
    if (status != EMX_OK || !real_clock) return status;
    if (calibration == NULL)
        return fail(EMX_E_INVALID,
                    "got no calibration; a modelled tier on the real clock needs one (emx_calibrate)");
    return emx_check_timing(calibration, timing);
}

emx_status path_create(const emx_timing* timing, emx_link* link, const emx_calibration* calibration,
                       bool real_clock, path** created) {
    if (timing_is_zero(timing) && timing_validate(timing) == EMX_OK && link == NULL) {
        *created = NULL;
        return EMX_OK;
    }
    emx_status status = check(timing, calibration, real_clock);
    if (status == EMX_OK && link != NULL) status = handle_require(HANDLE_LINK, link);
    if (status == EMX_OK && link != NULL) status = link_check(link);
    if (status != EMX_OK) return status;
    path* made = aligned_alloc(_Alignof(path) > 64 ? _Alignof(path) : 64, (sizeof(path) + 63) & ~(size_t)63);
    if (made == NULL) return fail(EMX_E_NO_MEMORY, "no memory for a path");
    *made = (path){
        .own_rates = {lane_rate_of(timing->read_bandwidth_gbps), lane_rate_of(timing->write_bandwidth_gbps)},
        .link = link,
        .latency_ns = {timing->read_latency_ns, timing->write_latency_ns},
        .constant_ns =
            timing->switch_hops * timing->hop_latency_ns + (link != NULL ? link_latency_ns(link) : 0),
        .piece_bytes = piece_of(timing, link),
        .timing = *timing,
    };
    if (link != NULL && (status = link_join(link, real_clock)) != EMX_OK) {
        free(made);
        return status;
    }
    *created = made;
    return EMX_OK;
}

void path_destroy(path* path) {
    if (path == NULL) return;
    if (path->link != NULL) link_release(path->link);
    free(path);
}

bool path_may_shrink(const path* path) {
    return path != NULL && path->link != NULL && link_may_shrink(path->link);
}

emx_status path_check(const path* path) { return path_may_shrink(path) ? link_check(path->link) : EMX_OK; }

static double busiest(path* path, emx_direction direction, uint64_t now_ns) {
    double own = path->own_rates[direction] != 0 ? lane_utilisation(&path->own[direction], now_ns) : 0;
    double shared = path->link != NULL ? link_utilisation(path->link, direction, now_ns) : 0;
    return own > shared ? own : shared;
}

uint64_t path_latency_ns(path* path, emx_direction direction, uint64_t now_ns) {
    double factor = 1;
    if (path->timing.num_curve_points > 0)
        factor = timing_latency_factor(&path->timing, busiest(path, direction, now_ns));
    return (uint64_t)llround(path->latency_ns[direction] * factor + path->constant_ns);
}

static lane_slot later(lane_slot left, lane_slot right) {
    return (lane_slot){left.start_ns > right.start_ns ? left.start_ns : right.start_ns,
                       left.release_ns > right.release_ns ? left.release_ns : right.release_ns};
}

lane_slot path_reserve(path* path, emx_direction direction, uint64_t size_bytes, uint64_t now_ns) {
    lane_slot own = {now_ns, now_ns};
    if (path->own_rates[direction] != 0)
        own = lane_reserve(&path->own[direction], path->own_rates[direction], direction, size_bytes, now_ns,
                           UINT64_MAX);
    return path->link != NULL ? later(own, link_queue(path->link, direction, size_bytes, now_ns)) : own;
}

size_t path_piece_bytes(const path* path) { return path->piece_bytes; }
