/* The environment's word on the two nodes of emucxl_lib.h: the library's only reader of the
 * environment. */
#ifndef EMX_COMPAT_ENVIRONMENT_H
#define EMX_COMPAT_ENVIRONMENT_H

#include <stdbool.h>

#include "emucxl/timing.h"

typedef struct node_settings {
    uint64_t capacity_bytes; /* 0: not said */
    double latency_ns;       /* 0: not modelled */
    double bandwidth_gbps;
    int numa_node;        /* -1: any */
    const char* dax_path; /* NULL: none. Of the environment: copied when the tier is made */
} node_settings;

/* Whether EMUCXL_QUIET asks for silence: set, and neither empty nor 0. */
bool environment_is_quiet(void);

/* EMX_E_INVALID, naming the variable, when one makes no sense or is not known. */
emx_status environment_read(node_settings* local, node_settings* remote);

#endif
