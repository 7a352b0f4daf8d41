#include "emucxl/resources.h"

#include <stdio.h>
#include <string.h>

#include "fail.h"
#include "prim/cgroup.h"
#include "prim/system_memory.h"

static uint64_t known(uint64_t value) { return value == UINT64_MAX ? 0 : value; }

/* As its own root calls it. */
static void tell(char told[EMX_GROUP_BYTES], const char* directory, const char* root) {
    snprintf(told, EMX_GROUP_BYTES, "%s", directory[0] != '\0' ? directory + strlen(root) : "");
}

emx_status emx_resources_read(const char* root, emx_resources* resources) {
    if (resources == NULL || resources->struct_bytes != sizeof *resources)
        return fail(EMX_E_INVALID,
                    "got emx_resources of %u bytes; expected %zu: set struct_bytes to its sizeof",
                    resources != NULL ? resources->struct_bytes : 0, sizeof *resources);
    if (root == NULL) root = "";
    if (strlen(root) >= CGROUP_PATH_BYTES)
        return fail(EMX_E_INVALID, "got a root of %zu bytes; expected less than %d", strlen(root),
                    CGROUP_PATH_BYTES);
    const cgroup_limits limits = cgroup_read(root);
    emx_resources found = {
        .struct_bytes = sizeof found,
        .memory_bytes = known(system_memory_total(root)),
        .memory_limit_bytes = known(limits.memory_limit_bytes),
        .available_bytes = system_memory_left(root, limits.memory_left_bytes),
        .cpu_quota_cores = limits.cpu_quota_cores,
    };
    tell(found.memory_group, limits.memory_group, root);
    tell(found.cpu_group, limits.cpu_group, root);
    *resources = found;
    return EMX_OK;
}
