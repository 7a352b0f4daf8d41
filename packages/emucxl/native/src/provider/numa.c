/* numa: memory of one node.
 *
 * The node is preferred, not bound: where it has run out, a bound page fault ends in the kernel's killer, a
 * preferred one takes a page from elsewhere. So every page is made at commit, and the kernel asked where it
 * is; what lies elsewhere, and cannot be moved, is given back and refused.
 */
#include <pthread.h>
#include <stdlib.h>

#include "fail.h"
#include "prim/memory.h"
#include "prim/numa.h"
#include "prim/system_memory.h"
#include "provider/provider.h"

static const char* probe_answer;

static int first_node(void) {
    char nodes[256];
    if (!system_nodes_with_memory(nodes, sizeof nodes)) return -1;
    int node = 0;
    for (const char* digit = nodes; *digit >= '0' && *digit <= '9'; digit++)
        node = 10 * node + (*digit - '0');
    return node;
}

/* Places one page and asks where it went. */
static void probe(void) {
    const int node = first_node();
    const size_t page = memory_page_bytes();
    void* base;
    size_t elsewhere = 0;
    int example;
    if (node < 0) {
        probe_answer = "the kernel names no NUMA nodes (/sys/devices/system/node/has_memory)";
    } else if (memory_reserve(page, page, &base) != 0) {
        probe_answer = "there is no memory left to probe NUMA with";
    } else {
        if (numa_prefer(base, page, node) != 0)
            probe_answer =
                "mbind is refused here: the kernel has no NUMA, or a container forbids it (CAP_SYS_NICE "
                "allows it)";
        else if (memory_enable(base, page) != 0 || memory_populate(base, page) != 0)
            probe_answer =
                "the kernel cannot place pages ahead of their use (MADV_POPULATE_WRITE, Linux 5.14 or newer)";
        else if (numa_verify(base, page, node, &elsewhere, &example) != 0)
            probe_answer = "move_pages is refused here, so where pages are cannot be verified";
        else if (elsewhere != 0) probe_answer = "the kernel places pages on other nodes than it was asked to";
        memory_release(base, page);
    }
}

static const char* unavailable(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, probe);
    return probe_answer;
}

static bool has_node(const char* nodes, int wanted) { /* "0-1,4" */
    for (const char* at = nodes;; at++) {
        char* end;
        const long first = strtol(at, &end, 10);
        if (end == at) return false;
        const long last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        if (wanted >= first && wanted <= last) return true;
        if (*end != ',') return false;
        at = end;
    }
}

static emx_status check_node(int node, size_t capacity_bytes) {
    char nodes[256] = "";
    (void)system_nodes_with_memory(nodes, sizeof nodes);
    if (!has_node(nodes, node))
        return fail(EMX_E_UNAVAILABLE, "got NUMA node %d; expected one that has memory: %s", node, nodes);
    const uint64_t free_bytes = system_memory_of_node(node);
    if (capacity_bytes <= free_bytes) return EMX_OK;
    return fail(EMX_E_NO_MEMORY,
                "got a capacity of %zu bytes; expected at most the %llu that NUMA node %d has free",
                capacity_bytes, (unsigned long long)free_bytes, node);
}

static emx_status numa_open(const emx_tier_config* config, pages* pages) {
    emx_status status = pages_require_capacity(config);
    if (status == EMX_OK) status = check_node(config->numa_node, config->capacity_bytes);
    if (status == EMX_OK)
        status = pages_reserve(pages, pages_round_up(config->capacity_bytes), PAGES_ALIGNMENT);
    if (status != EMX_OK) return status;
    memory_advise_huge(pages->base, pages->capacity_bytes);
    const int error_number = numa_prefer(pages->base, pages->capacity_bytes, config->numa_node);
    if (error_number != 0)
        status = fail_system(error_number, "mbind to NUMA node %d failed", config->numa_node);
    if (status == EMX_OK) status = pages_promise(pages);
    pages->numa_node = config->numa_node;
    pages->fresh_is_zero = pages->touchable = true;
    if (status != EMX_OK) pages_release(pages);
    return status;
}

/* Pages are there; are they where they should be? */
static emx_status verify(const pages* pages, char* base, size_t size_bytes) {
    size_t elsewhere;
    int example, error_number = numa_verify(base, size_bytes, pages->numa_node, &elsewhere, &example);
    if (error_number == 0 && elsewhere > 0) {
        (void)numa_move(base, size_bytes, pages->numa_node); /* what counts is where they are afterwards */
        error_number = numa_verify(base, size_bytes, pages->numa_node, &elsewhere, &example);
    }
    if (error_number != 0) return fail_system(error_number, "cannot ask the kernel where pages are");
    if (elsewhere == 0) return EMX_OK;
    return fail(EMX_E_NO_MEMORY, "%zu of %zu pages are not on NUMA node %d (one is on %d): the node is full",
                elsewhere, size_bytes / memory_page_bytes(), pages->numa_node, example);
}

static emx_status numa_commit(pages* pages, size_t offset, size_t size_bytes) {
    char* base = pages->base + offset;
    emx_status status = pages_check_growth(pages, size_bytes);
    if (status != EMX_OK) return status;
    status = pages_enable(pages, offset, size_bytes);
    if (status != EMX_OK) return status;
    const int error_number = memory_populate(base, size_bytes);
    status = error_number == 0
                 ? verify(pages, base, size_bytes)
                 : fail_system(error_number, "the system refused %zu more bytes of memory", size_bytes);
    if (status != EMX_OK) (void)memory_discard(base, size_bytes);
    return status;
}

const provider provider_numa = {
    .name = "numa",
    .unavailable = unavailable,
    .open = numa_open,
    .close = pages_release,
    .resident = pages_resident,
    .commit = numa_commit,
    .decommit = pages_discard,
};
