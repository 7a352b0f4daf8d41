#include "prim/system_memory.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TEXT_BYTES = 8192, PATH_BYTES = 1024 };

long system_read_text(const char *path, char *text, size_t capacity) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  size_t length = 0;
  for (ssize_t got; length < capacity - 1 && (got = read(fd, text + length, capacity - 1 - length)) > 0;)
    length += (size_t)got;
  close(fd);
  text[length] = '\0';
  return (long)length;
}

/* The number after `key` at the start of a line; `missing` if there is none. */
static uint64_t field(const char *text, const char *key, uint64_t missing) {
  const size_t length = strlen(key);
  for (const char *line = text; line != NULL; line = strchr(line, '\n'), line = line != NULL ? line + 1 : NULL)
    if (strncmp(line, key, length) == 0) return strtoull(line + length, NULL, 10);
  return missing;
}

static uint64_t less(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t number_in(const char *directory, const char *file, uint64_t missing) {
  char path[PATH_BYTES + 64], text[64];
  snprintf(path, sizeof path, "%s/%s", directory, file);
  if (system_read_text(path, text, sizeof text) <= 0 || text[0] < '0' || text[0] > '9') return missing; /* or "max" */
  return strtoull(text, NULL, 10);
}

typedef struct cgroup_files {
  const char *limit, *usage, *cache; /* cache: the field of memory.stat that counts what can be dropped */
} cgroup_files;

static const cgroup_files version_1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "};
static const cgroup_files version_2 = {"memory.max", "memory.current", "inactive_file "};

static uint64_t left_in_group(const char *directory, const cgroup_files *files) {
  const uint64_t limit = number_in(directory, files->limit, UINT64_MAX);
  if (limit >= UINT64_MAX / 4) return UINT64_MAX; /* v1's "no limit" is a little below 2^63 */
  char path[PATH_BYTES + 16], stat[TEXT_BYTES];
  snprintf(path, sizeof path, "%s/memory.stat", directory);
  const uint64_t cache = system_read_text(path, stat, sizeof stat) > 0 ? field(stat, files->cache, 0) : 0;
  const uint64_t usage = number_in(directory, files->usage, 0);
  const uint64_t used = usage > cache ? usage - cache : 0;
  return limit > used ? limit - used : 0;
}

/* The least over the group `name` below `mount` and all that contain it. A container may see its own group as the mount
 * itself, so that the name leads nowhere: then the files that do exist count. */
static uint64_t left_in_groups(const char *mount, const char *name, const cgroup_files *files) {
  char directory[PATH_BYTES];
  if ((size_t)snprintf(directory, sizeof directory, "%s%s", mount, name) >= sizeof directory) return UINT64_MAX;
  uint64_t left = UINT64_MAX;
  for (;;) {
    left = less(left, left_in_group(directory, files));
    char *slash = strrchr(directory, '/');
    if (slash == NULL || (size_t)(slash - directory) < strlen(mount)) return left;
    *slash = '\0';
  }
}

static uint64_t left_in_cgroups(void) {
  char text[TEXT_BYTES];
  uint64_t left = UINT64_MAX;
  if (system_read_text("/proc/self/cgroup", text, sizeof text) <= 0) return left;
  for (char *rest = text, *line; (line = strsep(&rest, "\n")) != NULL;) { /* "4:memory:/name" or "0::/name" */
    char *controllers = strchr(line, ':'), *name = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
    if (name == NULL) continue;
    *name++ = '\0';
    if (controllers[1] == '\0') left = less(left, left_in_groups("/sys/fs/cgroup", name, &version_2));
    if (strstr(controllers + 1, "memory") != NULL) left = less(left, left_in_groups("/sys/fs/cgroup/memory", name, &version_1));
  }
  return left;
}

uint64_t system_memory_available(void) {
  char text[TEXT_BYTES];
  uint64_t available = UINT64_MAX;
  if (system_read_text("/proc/meminfo", text, sizeof text) > 0) {
    const uint64_t kibibytes = field(text, "MemAvailable:", UINT64_MAX);
    if (kibibytes < UINT64_MAX / 1024) available = kibibytes * 1024;
  }
  return less(available, left_in_cgroups());
}

uint64_t system_memory_of_node(int node) {
  char path[PATH_BYTES], text[TEXT_BYTES], key[64];
  snprintf(path, sizeof path, "/sys/devices/system/node/node%d/meminfo", node);
  if (system_read_text(path, text, sizeof text) <= 0) return UINT64_MAX;
  snprintf(key, sizeof key, "Node %d MemFree:", node);
  const uint64_t free_kib = field(text, key, UINT64_MAX);
  snprintf(key, sizeof key, "Node %d Inactive(file):", node);
  const uint64_t cache_kib = field(text, key, 0);
  return free_kib < UINT64_MAX / 2048 ? (free_kib + cache_kib) * 1024 : UINT64_MAX;
}

bool system_nodes_with_memory(char *text, size_t capacity) {
  if (system_read_text("/sys/devices/system/node/has_memory", text, capacity) <= 0) return false;
  text[strcspn(text, "\n")] = '\0';
  return true;
}

uint32_t system_process_id(void) { return (uint32_t)getpid(); }
