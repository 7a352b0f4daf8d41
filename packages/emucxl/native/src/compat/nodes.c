#include "compat/nodes.h"

#include "compat/environment.h"
#include "emucxl_lib.h"
#include "fail.h"

/* Of a node whose size nobody chose: this, halved until the machine has it. Nothing is taken before it is
 * used. */
static const uint64_t DEFAULT_BYTES = UINT64_C(16) << 30, LEAST_DEFAULT_BYTES = UINT64_C(1) << 20;
static const uint64_t CALIBRATION_NS = 200000000;
enum { CALIBRATION_TRIES = 3 }; /* a moment in which the machine was busy may make it miss its promise */

static bool is_modelled(const node_settings* node) {
    return node->latency_ns > 0 || node->bandwidth_gbps > 0;
}

static emx_status add_node(emx_context* context, const char* name, const node_settings* node,
                           uint64_t default_bytes) {
    emx_tier_config config = {
        .struct_bytes = sizeof config,
        .provider = EMX_PROVIDER_ANON,
        .name = name,
        .capacity_bytes = node->capacity_bytes > 0 ? node->capacity_bytes : default_bytes,
        .fd = -1,
        .timing = {.read_latency_ns = node->latency_ns,
                   .write_latency_ns = node->latency_ns,
                   .read_bandwidth_gbps = node->bandwidth_gbps,
                   .write_bandwidth_gbps = node->bandwidth_gbps},
    };
    if (node->dax_path != NULL) {
        config.provider = EMX_PROVIDER_DAX;
        config.path = node->dax_path;
        config.capacity_bytes = node->capacity_bytes; /* 0: all that the device has */
    } else if (node->numa_node >= 0) {
        config.provider = EMX_PROVIDER_NUMA;
        config.numa_node = node->numa_node;
    }
    emx_tier number;
    return emx_tier_add(context, &config, &number);
}

static emx_status open_sized(const emx_context_config* config, const node_settings* local,
                             const node_settings* remote, uint64_t default_bytes, emx_context** context) {
    emx_status status = emx_context_open(config, context);
    if (status != EMX_OK) return status;
    status = add_node(*context, "local", local, default_bytes);
    if (status == EMX_OK) status = add_node(*context, "remote", remote, default_bytes);
    if (status != EMX_OK) emx_context_close(*context);
    return status;
}

static bool is_default(const node_settings* node) {
    return node->capacity_bytes == 0 && node->dax_path == NULL;
}

emx_status nodes_open(emx_context** context) {
    node_settings local, remote;
    emx_calibration calibration = {.struct_bytes = sizeof calibration};
    emx_context_config config = {.struct_bytes = sizeof config, .clock = EMX_CLOCK_REAL};
    emx_status status = environment_read(&local, &remote);
    if (status == EMX_OK && (is_modelled(&local) || is_modelled(&remote))) {
        for (int i = 0;
             i < CALIBRATION_TRIES && status == EMX_OK && (i == 0 || calibration.least_latency_ns > 0); i++)
            status = emx_calibrate(CALIBRATION_NS, &calibration);
        config.calibration = &calibration;
    }
    if (status != EMX_OK) return status;
    const bool may_shrink = is_default(&local) || is_default(&remote);
    uint64_t default_bytes = DEFAULT_BYTES;
    status = open_sized(&config, &local, &remote, default_bytes, context);
    while (status == EMX_E_NO_MEMORY && may_shrink && default_bytes > LEAST_DEFAULT_BYTES) {
        default_bytes /= 2;
        status = open_sized(&config, &local, &remote, default_bytes, context);
    }
    return status;
}
