#include "timing/timing.h"

#include "fail.h"
#include "timing/link.h"

static bool latency_is_valid(double latency_ns) { return latency_ns >= 0 && latency_ns <= MOST_LATENCY_NS; }

static bool bandwidth_is_valid(double gbps) {
    return gbps == 0 || (gbps >= LEAST_BANDWIDTH_GBPS && gbps <= MOST_BANDWIDTH_GBPS);
}

static emx_status validate_curve(const emx_timing* timing) {
    if (timing->num_curve_points > EMX_MAX_CURVE_POINTS)
        return fail(EMX_E_INVALID, "got %u curve points; expected at most %u", timing->num_curve_points,
                    EMX_MAX_CURVE_POINTS);
    emx_curve_point before = {-1, 1};
    for (uint32_t i = 0; i < timing->num_curve_points; i++) {
        emx_curve_point point = timing->curve[i];
        bool ascends =
            point.utilisation > before.utilisation && point.latency_factor >= before.latency_factor;
        if (!ascends || !(point.utilisation >= 0 && point.utilisation <= 1) || !(point.latency_factor <= 1e6))
            return fail(EMX_E_INVALID,
                        "got the curve point (%g, %g) at %u; expected utilisations that ascend from 0 to 1, "
                        "with factors of at "
                        "least 1 that do not fall",
                        point.utilisation, point.latency_factor, i);
        before = point;
    }
    return EMX_OK;
}

emx_status timing_validate(const emx_timing* timing) {
    const struct {
        const char* name;
        double value;
        bool valid;
    } fields[] = {
        {"read_latency_ns", timing->read_latency_ns, latency_is_valid(timing->read_latency_ns)},
        {"write_latency_ns", timing->write_latency_ns, latency_is_valid(timing->write_latency_ns)},
        {"hop_latency_ns", timing->hop_latency_ns, latency_is_valid(timing->hop_latency_ns)},
        {"read_bandwidth_gbps", timing->read_bandwidth_gbps, bandwidth_is_valid(timing->read_bandwidth_gbps)},
        {"write_bandwidth_gbps", timing->write_bandwidth_gbps,
         bandwidth_is_valid(timing->write_bandwidth_gbps)},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!fields[i].valid)
            return fail(EMX_E_INVALID,
                        "got %s %g; expected a latency of 0 to %g ns, a bandwidth of %g to %g GB/s, or 0",
                        fields[i].name, fields[i].value, MOST_LATENCY_NS, LEAST_BANDWIDTH_GBPS,
                        MOST_BANDWIDTH_GBPS);
    if (timing->switch_hops > 64)
        return fail(EMX_E_INVALID, "got %u switch hops; expected at most 64", timing->switch_hops);
    return validate_curve(timing);
}

bool timing_is_zero(const emx_timing* timing) {
    return timing->read_latency_ns == 0 && timing->write_latency_ns == 0 &&
           timing->read_bandwidth_gbps == 0 && timing->write_bandwidth_gbps == 0 &&
           timing->hop_latency_ns * timing->switch_hops == 0;
}

double timing_latency_factor(const emx_timing* timing, double utilisation) {
    const emx_curve_point* curve = timing->curve;
    uint32_t num_points = timing->num_curve_points;
    if (num_points == 0) return 1;
    if (utilisation <= curve[0].utilisation) return curve[0].latency_factor;
    for (uint32_t i = 1; i < num_points; i++) {
        if (utilisation > curve[i].utilisation) continue;
        double along =
            (utilisation - curve[i - 1].utilisation) / (curve[i].utilisation - curve[i - 1].utilisation);
        return curve[i - 1].latency_factor + along * (curve[i].latency_factor - curve[i - 1].latency_factor);
    }
    return curve[num_points - 1].latency_factor;
}

static emx_status check_latency(const char* name, double wanted_ns, double machine_ns) {
    if (wanted_ns == 0 || wanted_ns >= machine_ns) return EMX_OK;
    return fail(EMX_E_TOO_FAST,
                "got %s %.0f ns; this machine takes %.0f ns by itself, and a model can only add: ask for at "
                "least %.0f, for 0 "
                "(the machine's own), or use a virtual clock",
                name, wanted_ns, machine_ns, machine_ns + 1);
}

/* A machine whose delays were off when they were tried out. */
static emx_status check_promise(const char* name, double wanted_ns, const emx_calibration* calibration) {
    if (wanted_ns == 0 || wanted_ns >= calibration->least_latency_ns) return EMX_OK;
    return fail(EMX_E_TOO_FAST,
                "got %s %.0f ns; this machine, as it was calibrated, keeps within %.0f %% from %.0f ns on: "
                "ask for at least that, for 0 "
                "(the machine's own), calibrate again when less else is running, or use a virtual clock",
                name, wanted_ns, 100 * EMX_PROMISED_ERROR, calibration->least_latency_ns);
}

static emx_status check_bandwidth(const char* name, double wanted_gbps, double thread_gbps,
                                  uint32_t num_cores) {
    double machine_gbps = thread_gbps * (num_cores > 0 ? num_cores : 1);
    if (wanted_gbps <= machine_gbps) return EMX_OK;
    return fail(EMX_E_TOO_FAST,
                "got %s %.2f GB/s; the cores of this machine together move %.2f: ask for at most that, for 0 "
                "(the machine's "
                "own), or use a virtual clock",
                name, wanted_gbps, machine_gbps);
}

emx_status emx_check_timing(const emx_calibration* calibration, const emx_timing* timing) {
    if (calibration == NULL || timing == NULL)
        return fail(EMX_E_INVALID, "got NULL; expected a calibration and a timing");
    if (calibration->struct_bytes != sizeof *calibration)
        return fail(EMX_E_INVALID, "got a calibration of %u bytes; expected %zu", calibration->struct_bytes,
                    sizeof *calibration);
    emx_status status = timing_validate(timing);
    double hops_ns = timing->hop_latency_ns * timing->switch_hops;
    double read_ns = timing->read_latency_ns > 0 ? timing->read_latency_ns + hops_ns : 0;
    double write_ns = timing->write_latency_ns > 0 ? timing->write_latency_ns + hops_ns : 0;
    if (status == EMX_OK) status = check_latency("read_latency_ns", read_ns, calibration->read_latency_ns);
    if (status == EMX_OK) status = check_latency("write_latency_ns", write_ns, calibration->write_latency_ns);
    if (status == EMX_OK) status = check_promise("read_latency_ns", read_ns, calibration);
    if (status == EMX_OK) status = check_promise("write_latency_ns", write_ns, calibration);
    if (status == EMX_OK)
        status = check_bandwidth("read_bandwidth_gbps", timing->read_bandwidth_gbps,
                                 calibration->read_bandwidth_gbps, calibration->num_cores);
    if (status == EMX_OK)
        status = check_bandwidth("write_bandwidth_gbps", timing->write_bandwidth_gbps,
                                 calibration->write_bandwidth_gbps, calibration->num_cores);
    return status;
}
