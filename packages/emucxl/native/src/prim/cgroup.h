/* The limits that this process's control groups, v1 and v2, set: the least over its own group and all
 * that contain it. */
#ifndef EMX_PRIM_CGROUP_H
#define EMX_PRIM_CGROUP_H

#include <stdint.h>

enum { CGROUP_PATH_BYTES = 1024 };

typedef struct cgroup_limits {
    uint64_t memory_limit_bytes; /* UINT64_MAX: none */
    uint64_t memory_left_bytes;  /* before the kernel has to kill; what can be reclaimed counts as left */
    double cpu_quota_cores;      /* 0: none */
    char memory_group[CGROUP_PATH_BYTES]; /* the directory whose limit is the least; empty without one */
    char cpu_group[CGROUP_PATH_BYTES];
} cgroup_limits;

/* Reads below `root`: "" for the system's own files. Groups that cannot be read limit nothing. */
cgroup_limits cgroup_read(const char* root);

#endif
