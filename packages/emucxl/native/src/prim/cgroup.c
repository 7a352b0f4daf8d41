/* Where a group's files lie is told by two files together: /proc/self/cgroup names the group in each
 * hierarchy, and /proc/self/mountinfo says where hierarchies are mounted, and from which group on. In a
 * container these may differ: the mount begins at the container's own group ("/docker/4f2"), or both names
 * begin at a cgroup namespace's root ("/").
 */
#include "prim/cgroup.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "prim/text_file.h"

enum { STAT_BYTES = 8192, ROOM_BYTES = 64 };

typedef struct hierarchy {
    const char* controller; /* NULL: version 2, which has one hierarchy for all */
    void (*visit)(cgroup_limits* limits, const char* directory);
} hierarchy;

static uint64_t less(uint64_t a, uint64_t b) { return a < b ? a : b; }

static bool read_in(const char* directory, const char* file, char* text, size_t capacity) {
    char path[CGROUP_PATH_BYTES + ROOM_BYTES];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    return text_file_read(path, text, capacity) > 0;
}

/* A number of bytes; `missing` where there is none, as in "max". */
static uint64_t number_in(const char* directory, const char* file, uint64_t missing) {
    char text[ROOM_BYTES];
    if (!read_in(directory, file, text, sizeof text) || text[0] < '0' || text[0] > '9') return missing;
    return strtoull(text, NULL, 10);
}

static void note_memory(cgroup_limits* limits, const char* directory, uint64_t limit, uint64_t usage,
                        uint64_t reclaimable) {
    if (limit >= UINT64_MAX / 4) return; /* v1's "no limit" is a little below 2^63 */
    const uint64_t used = usage > reclaimable ? usage - reclaimable : 0;
    limits->memory_left_bytes = less(limits->memory_left_bytes, limit > used ? limit - used : 0);
    if (limit >= limits->memory_limit_bytes) return;
    limits->memory_limit_bytes = limit;
    snprintf(limits->memory_group, sizeof limits->memory_group, "%s", directory);
}

static void note_quota(cgroup_limits* limits, const char* directory, double quota_us, double period_us) {
    if (quota_us <= 0 || period_us <= 0) return;
    const double cores = quota_us / period_us;
    if (limits->cpu_quota_cores > 0 && cores >= limits->cpu_quota_cores) return;
    limits->cpu_quota_cores = cores;
    snprintf(limits->cpu_group, sizeof limits->cpu_group, "%s", directory);
}

/* Page cache counts as reclaimable whether it was used of late or not, as in the kernel's own MemAvailable:
 * before the kernel kills in a group it drops both. Pages of shared memory are not among them. */
static void visit_memory_1(cgroup_limits* limits, const char* directory) {
    char stat[STAT_BYTES] = "";
    (void)read_in(directory, "memory.stat", stat, sizeof stat);
    const uint64_t own = number_in(directory, "memory.limit_in_bytes", UINT64_MAX);
    /* Groups that are not to be seen, too. */
    const uint64_t above = text_file_field(stat, "hierarchical_memory_limit ", UINT64_MAX);
    const uint64_t cache =
        text_file_field(stat, "total_inactive_file ", 0) + text_file_field(stat, "total_active_file ", 0);
    note_memory(limits, directory, less(own, above), number_in(directory, "memory.usage_in_bytes", 0), cache);
}

static void visit_cpu_1(cgroup_limits* limits, const char* directory) {
    const double quota_us = (double)number_in(directory, "cpu.cfs_quota_us", 0); /* -1: none */
    note_quota(limits, directory, quota_us, (double)number_in(directory, "cpu.cfs_period_us", 0));
}

static void visit_2(cgroup_limits* limits, const char* directory) {
    char stat[STAT_BYTES] = "", max[ROOM_BYTES];
    const uint64_t limit = /* above memory.high a group is not killed, but brought to a crawl */
        less(number_in(directory, "memory.max", UINT64_MAX), number_in(directory, "memory.high", UINT64_MAX));
    if (limit != UINT64_MAX) (void)read_in(directory, "memory.stat", stat, sizeof stat);
    const uint64_t reclaimable = text_file_field(stat, "inactive_file ", 0) +
                                 text_file_field(stat, "active_file ", 0) +
                                 text_file_field(stat, "slab_reclaimable ", 0);
    note_memory(limits, directory, limit, number_in(directory, "memory.current", 0), reclaimable);
    double quota_us = 0, period_us = 0;
    /* The quota may be the word "max". */
    if (read_in(directory, "cpu.max", max, sizeof max) && sscanf(max, "%lf %lf", &quota_us, &period_us) == 2)
        note_quota(limits, directory, quota_us, period_us);
}

static const hierarchy hierarchies[] = {{"memory", visit_memory_1}, {"cpu", visit_cpu_1}, {NULL, visit_2}};
enum { NUM_HIERARCHIES = sizeof hierarchies / sizeof *hierarchies };
static const char* const usual_mounts[NUM_HIERARCHIES] = {"/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu",
                                                          "/sys/fs/cgroup"};

/* Whether `list`, separated by commas, has `word`. */
static bool has_word(const char* list, const char* word) {
    const size_t length = strlen(word);
    for (const char* at = list; (at = strstr(at, word)) != NULL; at += length)
        if ((at == list || at[-1] == ',') && (at[length] == '\0' || at[length] == ',')) return true;
    return false;
}

static FILE* open_below(const char* root, const char* name) {
    char path[CGROUP_PATH_BYTES + ROOM_BYTES];
    snprintf(path, sizeof path, "%s%s", root, name);
    return fopen(path, "re");
}

/* This process's group in a hierarchy, out of lines such as "4:memory:/name" and "0::/name". */
static bool find_group(const char* root, const hierarchy* wanted, char* group) {
    FILE* file = open_below(root, "/proc/self/cgroup");
    char* line = NULL;
    size_t capacity = 0;
    bool found = false;
    while (file != NULL && !found && getline(&line, &capacity, file) > 0) {
        char* newline = strchr(line, '\n');
        if (newline != NULL) *newline = '\0';
        char *controllers = strchr(line, ':'),
             *name = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (name == NULL || name[1] != '/') continue;
        *name++ = '\0';
        controllers++;
        found =
            wanted->controller != NULL ? has_word(controllers, wanted->controller) : controllers[0] == '\0';
        if (found) snprintf(group, CGROUP_PATH_BYTES, "%s", strcmp(name, "/") == 0 ? "" : name);
    }
    free(line);
    if (file != NULL) fclose(file);
    return found;
}

/* Mountinfo writes blanks and backslashes as \040 and the like. */
static void unescape(char* text) {
    char* to = text;
    for (const char* from = text; *from != '\0'; to++) {
        unsigned code;
        int digits;
        if (from[0] == '\\' && sscanf(from + 1, "%3o%n", &code, &digits) == 1) {
            *to = (char)code;
            from += 1 + digits;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
}

typedef struct mount {
    /* The group that it begins at, where it is, and the controllers of version 1. */
    char *top, *point, *options;
    bool is_version_2;
} mount;

/* "31 23 0:28 TOP POINT options [tags] - type source super-options": pieces of `line`, or false for another
 * file system. */
static bool parse_mount(char* line, mount* found) {
    char *fields[5], *rest = line;
    line[strcspn(line, "\n")] = '\0';
    char* dash = strstr(line, " - ");
    if (dash == NULL) return false;
    *dash = '\0';
    for (int i = 0; i < 5; i++)
        if ((fields[i] = strsep(&rest, " ")) == NULL) return false;
    char *after = dash + 3, *type = strsep(&after, " ");
    (void)strsep(&after, " "); /* the source */
    if (after == NULL || (strcmp(type, "cgroup") != 0 && strcmp(type, "cgroup2") != 0)) return false;
    *found = (mount){fields[3], fields[4], after, strcmp(type, "cgroup2") == 0};
    unescape(found->top);
    unescape(found->point);
    if (strcmp(found->top, "/") == 0) found->top[0] = '\0';
    return true;
}

static bool is_of(const mount* mount, const hierarchy* wanted) {
    if (wanted->controller == NULL) return mount->is_version_2;
    return !mount->is_version_2 && has_word(mount->options, wanted->controller);
}

/* The part of the path `group` below `top`; NULL if it lies elsewhere. */
static const char* below(const char* group, const char* top) {
    const size_t length = strlen(top);
    return strncmp(group, top, length) == 0 && (group[length] == '/' || group[length] == '\0')
               ? group + length
               : NULL;
}

/* The group and all that contain it, up to the mount. */
static void visit_all(cgroup_limits* limits, const hierarchy* of, const char* root, const char* point,
                      const char* group) {
    char directory[CGROUP_PATH_BYTES];
    const size_t top = (size_t)snprintf(directory, sizeof directory, "%s%s", root, point);
    if ((size_t)snprintf(directory, sizeof directory, "%s%s%s", root, point, group) >= sizeof directory)
        return;
    for (;;) {
        of->visit(limits, directory);
        char* slash = strrchr(directory, '/');
        if (slash == NULL || (size_t)(slash - directory) < top) return;
        *slash = '\0';
    }
}

static void visit_hierarchy(cgroup_limits* limits, const char* root, int number) {
    const hierarchy* of = &hierarchies[number];
    char group[CGROUP_PATH_BYTES] = "", fallback[CGROUP_PATH_BYTES] = "", *line = NULL;
    size_t capacity = 0;
    bool is_named = find_group(root, of, group), is_found = false;
    FILE* file = open_below(root, "/proc/self/mountinfo");
    if (file == NULL) snprintf(fallback, sizeof fallback, "%s", usual_mounts[number]);
    while (file != NULL && getline(&line, &capacity, file) > 0) {
        mount mount;
        if (!parse_mount(line, &mount) || !is_of(&mount, of)) continue;
        const char* rest = is_named ? below(group, mount.top) : NULL;
        /* A mount of other groups, or the container's own under a name that is unknown here. */
        if (rest == NULL) {
            if (fallback[0] == '\0') snprintf(fallback, sizeof fallback, "%s", mount.point);
            continue;
        }
        is_found = true;
        visit_all(limits, of, root, mount.point, rest);
    }
    if (!is_found && fallback[0] != '\0') visit_all(limits, of, root, fallback, is_named ? group : "");
    free(line);
    if (file != NULL) fclose(file);
}

cgroup_limits cgroup_read(const char* root) {
    cgroup_limits limits = {.memory_limit_bytes = UINT64_MAX, .memory_left_bytes = UINT64_MAX};
    for (int i = 0; i < NUM_HIERARCHIES; i++) visit_hierarchy(&limits, root, i);
    return limits;
}
