/* The system's memory, as the kernel's text files tell it. */
#ifndef EMX_PRIM_SYSTEM_MEMORY_H
#define EMX_PRIM_SYSTEM_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A field of /proc/meminfo below `root` ("": the system's own) in bytes; UINT64_MAX where it is missing. */
uint64_t system_meminfo(const char* root, const char* key);

/* Bytes of memory that the machine has, whatever a cgroup allows; UINT64_MAX where that cannot be read. */
uint64_t system_memory_total(const char* root);

/* The least of what the machine has left and of what its groups have (`left_in_groups`). */
uint64_t system_memory_left(const char* root, uint64_t left_in_groups);

/* Bytes that this process can still get before the kernel has to kill: the least of MemAvailable and of what
 * each memory cgroup (v1 or v2) that the process is in has left (cgroup.h). UINT64_MAX where nothing of this
 * can be read. */
uint64_t system_memory_available(void);

/* Of them, what this library leaves for everybody else. */
#define SYSTEM_KEPT_BYTES ((uint64_t)64 << 20)

/* Free bytes of a NUMA node, and page cache that can be dropped; UINT64_MAX if that is unknown. */
uint64_t system_memory_of_node(int node);

/* Nodes that have memory, as the kernel writes them ("0-1,4"); false where it does not say. */
bool system_nodes_with_memory(char* text, size_t capacity);

uint32_t system_process_id(void);

#endif
