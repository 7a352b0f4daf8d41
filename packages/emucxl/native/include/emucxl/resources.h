/* The resources that this process may use, control groups counted: the memory and the processor time that a
 * container grants, where it grants less than the machine has. Cores are not here: sched_getaffinity knows
 * them, cpusets included.
 *
 * Thread safety: any number of threads at once. Nothing is kept between calls, as limits change while a
 * program runs.
 */
#ifndef EMUCXL_RESOURCES_H
#define EMUCXL_RESOURCES_H

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { EMX_GROUP_BYTES = 256 };

typedef struct emx_resources {
    uint32_t struct_bytes;
    uint32_t reserved;
    uint64_t memory_bytes;       /* that the machine has; 0 where it does not say */
    uint64_t memory_limit_bytes; /* the least limit of a cgroup; 0 without one */
    uint64_t available_bytes;    /* the least of MemAvailable and of what each cgroup has left;
                                    UINT64_MAX: unknown */
    double cpu_quota_cores; /* the least quota of a cgroup, 1.5 being one core and a half; 0 without one */
    char memory_group[EMX_GROUP_BYTES]; /* the directory of the group with the least limit, cut to fit; empty
                                           without one */
    char cpu_group[EMX_GROUP_BYTES];
} emx_resources;

/* Reads the files of the kernel below `root`: NULL or "" for those of the system, or a directory with
 * proc/self/cgroup, proc/self/mountinfo, proc/meminfo and the mounts that these name. What is missing limits
 * nothing. */
EMX_API emx_status emx_resources_read(const char* root, emx_resources* resources);

#ifdef __cplusplus
}
#endif
#endif
