#include "compat/environment.h"

#include <errno.h>
#include <locale.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fail.h"

/* "256M": digits, and an optional binary unit. */
static bool parse_bytes(const char* text, node_settings* node) {
    static const char units[] = "KMGT";
    if (text[0] < '0' || text[0] > '9') return false;
    char* end;
    errno = 0;
    const unsigned long long number = strtoull(text, &end, 10);
    const char* unit = *end != '\0' ? strchr(units, *end) : NULL;
    const unsigned shift = unit != NULL ? 10 * (unsigned)(unit - units + 1) : 0;
    if (errno != 0 || end[unit != NULL] != '\0' || number == 0 || number > UINT64_MAX >> shift) return false;
    node->capacity_bytes = (uint64_t)number << shift;
    return true;
}

/* A number with a point, whatever the program's locale writes. */
static bool parse_double(const char* text, double* number) {
    if ((text[0] < '0' || text[0] > '9') && text[0] != '.') return false;
    const locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (plain == (locale_t)0) return false;
    char* end;
    *number = strtod_l(text, &end, plain);
    freelocale(plain);
    return *end == '\0' && *number > 0 && *number <= 1e12;
}

static bool parse_latency(const char* text, node_settings* node) {
    return parse_double(text, &node->latency_ns);
}

static bool parse_bandwidth(const char* text, node_settings* node) {
    return parse_double(text, &node->bandwidth_gbps);
}

static bool parse_numa_node(const char* text, node_settings* node) {
    if (text[0] < '0' || text[0] > '9') return false;
    char* end;
    const long number = strtol(text, &end, 10);
    if (*end != '\0' || number > 1 << 16) return false;
    node->numa_node = (int)number;
    return true;
}

static bool parse_dax(const char* text, node_settings* node) {
    node->dax_path = text;
    return text[0] != '\0';
}

static const struct {
    const char* name;
    bool (*parse)(const char* text, node_settings* node);
    const char* expected;
} variables[] = {
    {"BYTES", parse_bytes, "a size of at least 1, as 4096, 256M or 16G"},
    {"LATENCY_NS", parse_latency, "nanoseconds, more than 0"},
    {"BANDWIDTH_GBPS", parse_bandwidth, "1e9 bytes per second, more than 0"},
    {"NUMA_NODE", parse_numa_node, "the number of a NUMA node"},
    {"DAX", parse_dax, "the path of a device or file"},
};

/* `name` is "BYTES=256M" and so on. */
static emx_status set(const char* entry, const char* name, node_settings* node) {
    const size_t entry_length = strcspn(entry, "="), length = strcspn(name, "=");
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        if (strlen(variables[i].name) != length || strncmp(variables[i].name, name, length) != 0) continue;
        if (variables[i].parse(name + length + 1, node)) return EMX_OK;
        return fail(EMX_E_INVALID, "got %s in the environment; expected %s", entry, variables[i].expected);
    }
    return fail(EMX_E_INVALID,
                "got %.*s in the environment; expected EMUCXL_LOCAL_ or EMUCXL_REMOTE_ with BYTES, "
                "LATENCY_NS, BANDWIDTH_GBPS, NUMA_NODE or DAX",
                (int)entry_length, entry);
}

emx_status environment_read(node_settings* local, node_settings* remote) {
    static const char local_prefix[] = "EMUCXL_LOCAL_", remote_prefix[] = "EMUCXL_REMOTE_";
    *local = *remote = (node_settings){.numa_node = -1};
    emx_status status = EMX_OK;
    for (char** entry = environ; entry != NULL && *entry != NULL && status == EMX_OK; entry++) {
        if (strncmp(*entry, local_prefix, sizeof local_prefix - 1) == 0)
            status = set(*entry, *entry + sizeof local_prefix - 1, local);
        else if (strncmp(*entry, remote_prefix, sizeof remote_prefix - 1) == 0)
            status = set(*entry, *entry + sizeof remote_prefix - 1, remote);
    }
    return status;
}

bool environment_is_quiet(void) {
    const char* value = getenv("EMUCXL_QUIET");
    return value != NULL && value[0] != '\0' && strcmp(value, "0") != 0;
}
