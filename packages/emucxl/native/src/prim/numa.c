#include "prim/numa.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "prim/memory.h"

enum { PREFERRED = 1 /* MPOL_PREFERRED */, MOVE_OWN = 2 /* MPOL_MF_MOVE */, PAGES_AT_ONCE = 512 };

int numa_prefer(void* base, size_t size_bytes, int node) {
    enum { BITS = 8 * sizeof(unsigned long) };
    unsigned long mask[NUMA_MAX_NODES / BITS] = {0};
    if (node < 0 || node >= NUMA_MAX_NODES) return EINVAL;
    mask[node / BITS] = 1UL << (node % BITS);
    return syscall(SYS_mbind, base, size_bytes, PREFERRED, mask, (unsigned long)NUMA_MAX_NODES + 1, 0) == 0
               ? 0
               : errno;
}

/* One call for up to PAGES_AT_ONCE pages. `move`: to `node`; otherwise only asks. */
static int ask(char* base, size_t num_pages, int node, bool move, int* found) {
    void* pages[PAGES_AT_ONCE];
    int nodes[PAGES_AT_ONCE];
    for (size_t i = 0; i < num_pages; i++) {
        pages[i] = base + i * memory_page_bytes();
        nodes[i] = node;
        found[i] = -ENOENT;
    }
    return syscall(SYS_move_pages, 0, num_pages, pages, move ? nodes : NULL, found, move ? MOVE_OWN : 0) >= 0
               ? 0
               : errno;
}

static size_t pages_left(size_t size_bytes, size_t done) {
    const size_t left = (size_bytes - done) / memory_page_bytes();
    return left < PAGES_AT_ONCE ? left : PAGES_AT_ONCE;
}

int numa_move(void* base, size_t size_bytes, int node) {
    int found[PAGES_AT_ONCE];
    for (size_t done = 0, now; done < size_bytes; done += now * memory_page_bytes()) {
        now = pages_left(size_bytes, done);
        const int error_number = ask((char*)base + done, now, node, true, found);
        if (error_number != 0) return error_number;
    }
    return 0;
}

int numa_verify(void* base, size_t size_bytes, int node, size_t* elsewhere, int* example) {
    int found[PAGES_AT_ONCE];
    *elsewhere = 0;
    *example = -1;
    for (size_t done = 0, now; done < size_bytes; done += now * memory_page_bytes()) {
        now = pages_left(size_bytes, done);
        const int error_number = ask((char*)base + done, now, node, false, found);
        if (error_number != 0) return error_number;
        for (size_t i = 0; i < now; i++) {
            if (found[i] == node) continue;
            if (++*elsewhere == 1 && found[i] >= 0) *example = found[i];
        }
    }
    return 0;
}
