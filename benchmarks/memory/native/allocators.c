#include "allocators.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>

static void* tier_alloc(const allocator* self, size_t size_bytes) {
    void* block = NULL;
    return emx_alloc(self->tier.context, self->tier.number, size_bytes, 0, &block) == EMX_OK ? block : NULL;
}

static void tier_free(const allocator* self, void* block, size_t size_bytes) {
    (void)size_bytes;
    emx_free(self->tier.context, block);
}

static void* libc_malloc(const allocator* self, size_t size_bytes) { return (void)self, malloc(size_bytes); }
static void* libc_calloc(const allocator* self, size_t size_bytes) {
    return (void)self, calloc(1, size_bytes);
}
static void libc_free(const allocator* self, void* block, size_t size_bytes) {
    (void)self, (void)size_bytes, free(block);
}

static void* map_pages(const allocator* self, size_t size_bytes) {
    (void)self;
    void* block = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return block == MAP_FAILED ? NULL : block;
}

static void unmap_pages(const allocator* self, void* block, size_t size_bytes) {
    (void)self, munmap(block, size_bytes);
}

/* ---- mimalloc ------------------------------------------------------------------------------------------ */

static struct {
    void* (*malloc)(size_t), *(*zalloc)(size_t);
    void (*free)(void*);
} mi;

static bool mi_load(void) {
    static void* library; /* loaded once, and kept: threads may still hold its caches */
    if (!library) library = dlopen("libmimalloc.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) return false;
    *(void**)&mi.malloc = dlsym(library, "mi_malloc");
    *(void**)&mi.zalloc = dlsym(library, "mi_zalloc");
    *(void**)&mi.free = dlsym(library, "mi_free");
    return mi.malloc && mi.zalloc && mi.free;
}

static void* mi_alloc(const allocator* self, size_t size_bytes) { return (void)self, mi.malloc(size_bytes); }
static void* mi_alloc_zeroed(const allocator* self, size_t size_bytes) {
    return (void)self, mi.zalloc(size_bytes);
}
static void mi_release(const allocator* self, void* block, size_t size_bytes) {
    (void)self, (void)size_bytes, mi.free(block);
}

/* ---- unified-memory-framework -------------------------------------------------------------------------- */

static struct {
    void* (*malloc)(void* pool, size_t);
    int (*free)(void* pool, void*);
    void* pool;
} umf;

/* Of one that takes nothing and gives a table of operations. */
static void* call(void* library, const char* name) {
    void* (*function)(void);
    *(void**)&function = dlsym(library, name);
    return function ? function() : NULL;
}

static void* create_params(void* library, const char* name) {
    int (*create)(void**);
    void* made = NULL;
    *(void**)&create = dlsym(library, name);
    return create && create(&made) == 0 ? made : NULL;
}

static bool umf_load(void) {
    int (*create_provider)(const void*, const void*, void**);
    int (*create_pool)(const void*, void*, const void*, uint32_t, void**);
    void *provider = NULL, *library = umf.pool ? NULL : dlopen("libumf.so.1", RTLD_NOW | RTLD_LOCAL);
    if (umf.pool || !library) return umf.pool != NULL;
    *(void**)&create_provider = dlsym(library, "umfMemoryProviderCreate");
    *(void**)&create_pool = dlsym(library, "umfPoolCreate");
    *(void**)&umf.malloc = dlsym(library, "umfPoolMalloc");
    *(void**)&umf.free = dlsym(library, "umfPoolFree");
    const void *pages = call(library, "umfOsMemoryProviderOps"),
               *disjoint = call(library, "umfDisjointPoolOps");
    void* page_params = create_params(library, "umfOsMemoryProviderParamsCreate");
    void* pool_params = create_params(library, "umfDisjointPoolParamsCreate");
    if (!create_provider || !create_pool || !umf.malloc || !umf.free || !pages || !disjoint || !page_params ||
        !pool_params)
        return false;
    if (create_provider(pages, page_params, &provider) != 0) return false;
    return create_pool(disjoint, provider, pool_params, 0, &umf.pool) == 0;
}

static void* umf_alloc(const allocator* self, size_t size_bytes) {
    return umf.malloc(self->pool, size_bytes);
}
static void umf_release(const allocator* self, void* block, size_t size_bytes) {
    (void)size_bytes, umf.free(self->pool, block);
}

/* -------------------------------------------------------------------------------------------------------- */

bool allocator_open(bench_allocator which, const bench_tier* tier, allocator* opened) {
    switch (which) {
        case BENCH_EMUCXL:
            *opened = (allocator){tier_alloc, tier_free, .tier = *tier, .zeroes = true};
            return true;
        case BENCH_MALLOC:
            *opened = (allocator){libc_malloc, libc_free, .zeroes = false};
            return true;
        case BENCH_CALLOC:
            *opened = (allocator){libc_calloc, libc_free, .zeroes = true};
            return true;
        case BENCH_MI_MALLOC:
            *opened = (allocator){mi_alloc, mi_release, .zeroes = false};
            return mi_load();
        case BENCH_MI_ZALLOC:
            *opened = (allocator){mi_alloc_zeroed, mi_release, .zeroes = true};
            return mi_load();
        case BENCH_UMF: {
            const bool loaded = umf_load();
            *opened = (allocator){umf_alloc, umf_release, .pool = umf.pool, .zeroes = false};
            return loaded;
        }
        case BENCH_MMAP:
            *opened = (allocator){map_pages, unmap_pages, .zeroes = true};
            return true;
        default:
            return false;
    }
}
