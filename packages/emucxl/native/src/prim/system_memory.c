#include "prim/system_memory.h"

#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "prim/cgroup.h"
#include "prim/text_file.h"

enum { TEXT_BYTES = 8192, PATH_BYTES = 1024 };

uint64_t system_meminfo(const char* root, const char* key) {
    char path[PATH_BYTES], text[TEXT_BYTES];
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    if (text_file_read(path, text, sizeof text) <= 0) return UINT64_MAX;
    const uint64_t kibibytes = text_file_field(text, key, UINT64_MAX);
    return kibibytes < UINT64_MAX / 1024 ? kibibytes * 1024 : UINT64_MAX;
}

uint64_t system_memory_total(const char* root) {
    const uint64_t told = system_meminfo(root, "MemTotal:");
    struct sysinfo info;
    if (told != UINT64_MAX || root[0] != '\0' || sysinfo(&info) != 0) return told;
    return (uint64_t)info.totalram * info.mem_unit;
}

/* Without /proc the system call knows the free pages and not the page cache: a little less than there is. */
static uint64_t left_in_machine(const char* root) {
    const uint64_t told = system_meminfo(root, "MemAvailable:");
    struct sysinfo info;
    if (told != UINT64_MAX || root[0] != '\0' || sysinfo(&info) != 0) return told;
    return ((uint64_t)info.freeram + info.bufferram) * info.mem_unit;
}

uint64_t system_memory_left(const char* root, uint64_t left_in_groups) {
    const uint64_t in_machine = left_in_machine(root);
    return in_machine < left_in_groups ? in_machine : left_in_groups;
}

uint64_t system_memory_available(void) { return system_memory_left("", cgroup_read("").memory_left_bytes); }

uint64_t system_memory_of_node(int node) {
    char path[PATH_BYTES], text[TEXT_BYTES], key[64];
    snprintf(path, sizeof path, "/sys/devices/system/node/node%d/meminfo", node);
    if (text_file_read(path, text, sizeof text) <= 0) return UINT64_MAX;
    snprintf(key, sizeof key, "Node %d MemFree:", node);
    const uint64_t free_kib = text_file_field(text, key, UINT64_MAX);
    snprintf(key, sizeof key, "Node %d Inactive(file):", node);
    const uint64_t cache_kib = text_file_field(text, key, 0);
    return free_kib < UINT64_MAX / 2048 ? (free_kib + cache_kib) * 1024 : UINT64_MAX;
}

bool system_nodes_with_memory(char* text, size_t capacity) {
    if (text_file_read("/sys/devices/system/node/has_memory", text, capacity) <= 0) return false;
    text[strcspn(text, "\n")] = '\0';
    return true;
}

uint32_t system_process_id(void) { return (uint32_t)getpid(); }
