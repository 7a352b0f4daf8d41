/* emucxl_lib.h: the published calls, over one context for the whole process, as that interface has it. */
#include "emucxl_lib.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "compat/environment.h"
#include "compat/nodes.h"
#include "context/internal.h"
#include "fail.h"
#include "fork.h"

/* Thread safety: `users` and `reason` under the lock; `opened` is stored under it and read without. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned users;   /* emucxl_init without their emucxl_exit */
static char reason[400]; /* why the last emucxl_init failed */
static _Atomic(emx_context*) opened;

/* Acquire: pairs with the release in emucxl_init, so that who finds the context finds its tiers too. */
static emx_context* current(void) { return atomic_load_explicit(&opened, memory_order_acquire); }

/* For those that need it; says what is missing. */
static emx_context* require_context(void) {
    emx_context* context = current();
    if (context != NULL) return context;
    pthread_mutex_lock(&lock);
    if (users == 0)
        fail(EMX_E_CLOSED, "there are no nodes: call emucxl_init() first, and emucxl_exit() last");
    else fail(EMX_E_CLOSED, "emucxl_init() failed: %s", reason);
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* The published programs ask nobody whether it worked, and crash on the first NULL: so it is said at once,
 * too. */
static void tell(const char* detail) {
    snprintf(reason, sizeof reason, "%s", detail);
    if (!environment_is_quiet()) fprintf(stderr, "emucxl: emucxl_init() failed: %s\n", reason);
}

void emucxl_init(void) {
    pthread_mutex_lock(&lock);
    users++;
    if (current() == NULL) {
        emx_context* context;
        if (nodes_open(&context) == EMX_OK) atomic_store_explicit(&opened, context, memory_order_release);
        else tell(emx_error_detail());
    }
    pthread_mutex_unlock(&lock);
}

void emucxl_exit(void) {
    pthread_mutex_lock(&lock);
    if (users == 0) fail(EMX_E_CLOSED, "emucxl_exit() without emucxl_init()");
    else if (--users == 0) emx_context_close(atomic_exchange(&opened, NULL));
    pthread_mutex_unlock(&lock);
}

static void hold(void) { pthread_mutex_lock(&lock); }

static void let_go(bool is_child) {
    (void)is_child;
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void prepare(void) { fork_watch(FORK_COMPAT, hold, let_go); }

/* ---- allocations --------------------------------------------------------------------------------------- */

static void* alloc_on(emx_context* context, int node, size_t size) {
    void* pointer;
    if (node != LOCAL_MEMORY && node != REMOTE_MEMORY) {
        fail(EMX_E_INVALID, "got node %d; expected LOCAL_MEMORY (0) or REMOTE_MEMORY (1)", node);
        return NULL;
    }
    const size_t alignment = size >= PAGE_SIZE ? PAGE_SIZE : 0;
    return emx_alloc(context, (emx_tier)node, size, alignment, &pointer) == EMX_OK ? pointer : NULL;
}

/* The allocation that begins at `ptr`. */
static bool find(emx_context* context, void* ptr, emx_allocation* found) {
    if (emx_query(context, ptr, found) != EMX_OK) return false;
    if (found->offset == 0) return true;
    fail(EMX_E_BAD_POINTER, "got %p, which is %llu bytes into an allocation; expected its first byte, %p",
         ptr, (unsigned long long)found->offset, found->base);
    return false;
}

/* A new allocation with the bytes that fit of the old one, which is freed. */
static void* replace(emx_context* context, const emx_allocation* old, int node, size_t size) {
    void* moved = alloc_on(context, node, size);
    if (moved == NULL) { /* the node is full: perhaps it fits where it is */
        const bool stays = (emx_tier)node == old->tier;
        return stays && emx_resize(context, old->base, size, &moved) == EMX_OK ? moved : NULL;
    }
    const size_t kept = old->size_bytes < size ? old->size_bytes : size;
    if (emx_copy(context, moved, 0, old->base, 0, kept) == EMX_OK && emx_free(context, old->base) == EMX_OK)
        return moved;
    char failure[400];
    snprintf(failure, sizeof failure, "%s", emx_error_detail());
    emx_free(context, moved);
    fail(EMX_E_BAD_POINTER, "%s", failure);
    return NULL;
}

void* emucxl_alloc(size_t size, int node) {
    emx_context* context = require_context();
    return context != NULL ? alloc_on(context, node, size) : NULL;
}

void emucxl_free(void* ptr, size_t size) {
    (void)size;
    if (ptr == NULL) return;
    emx_context* context = require_context();
    if (context != NULL) emx_free(context, ptr);
}

void* emucxl_resize(void* ptr, int node, size_t oldsize, size_t newsize) {
    (void)oldsize;
    emx_allocation old;
    emx_context* context = require_context();
    return context != NULL && find(context, ptr, &old) ? replace(context, &old, node, newsize) : NULL;
}

void* emucxl_migrate(void* ptr, int newnode, size_t size) {
    emx_allocation old;
    emx_context* context = require_context();
    if (context == NULL || !find(context, ptr, &old)) return NULL;
    if (newnode == (int)old.tier && size <= old.size_bytes) return ptr;
    return replace(context, &old, newnode, size > old.size_bytes ? size : old.size_bytes);
}

/* ---- accesses ------------------------------------------------------------------------------------------ */

static bool is_ours(const emx_context* context, const void* pointer) {
    return context != NULL && context_tier_of(context, pointer) != NULL;
}

/* Between memory of any kind; that which is emucxl's is checked and priced. Ranges may overlap. */
static bool copy(emx_context* context, void* to, size_t to_offset, const void* from, size_t from_offset,
                 size_t size) {
    const bool to_ours = is_ours(context, to), from_ours = is_ours(context, from);
    if (to_ours && from_ours) return emx_copy(context, to, to_offset, from, from_offset, size) == EMX_OK;
    if (to_ours) return emx_write(context, to, to_offset, from, size) == EMX_OK;
    if (from_ours) return emx_read(context, from, from_offset, to, size) == EMX_OK;
    memmove(to, from, size);
    return true;
}

static bool is_complete(const void* left, const void* right, size_t size) {
    if (left != NULL && right != NULL && size > 0) return true;
    fail(EMX_E_INVALID, "got %p, %p and a size of %zu; expected memory on both sides and at least 1 byte",
         left, right, size);
    return false;
}

static bool is_index(int start_index) {
    if (start_index >= 0) return true;
    fail(EMX_E_INVALID, "got start_index %d; expected 0 or more", start_index);
    return false;
}

/* Checks the arguments of read and write; NULL if something is missing. */
static emx_context* check_access(const void* ptr, int start_index, const void* buffer, size_t size) {
    emx_context* context = require_context();
    if (context == NULL || !is_complete(ptr, buffer, size) || !is_index(start_index)) return NULL;
    if (is_ours(context, ptr)) return context;
    fail(EMX_E_BAD_POINTER, "got %p, which is on neither node; expected what emucxl_alloc gave", ptr);
    return NULL;
}

bool emucxl_read(void* ptr, int start_index, void* buffer, size_t size) {
    emx_context* context = check_access(ptr, start_index, buffer, size);
    return context != NULL && copy(context, buffer, 0, ptr, (size_t)start_index, size);
}

bool emucxl_write(void* ptr, int start_index, void* buffer, size_t size) {
    emx_context* context = check_access(ptr, start_index, buffer, size);
    return context != NULL && copy(context, ptr, (size_t)start_index, buffer, 0, size);
}

void* emucxl_memset(void* ptr, int start_index, int value, size_t size) {
    if (!is_complete(ptr, ptr, size) || !is_index(start_index)) return NULL;
    emx_context* context = current();
    if (is_ours(context, ptr))
        return emx_memset(context, ptr, (size_t)start_index, value, size) == EMX_OK ? ptr : NULL;
    memset((char*)ptr + start_index, value, size);
    return ptr;
}

void* emucxl_memcpy(void* dest, const void* src, size_t size) {
    return is_complete(dest, src, size) && copy(current(), dest, 0, src, 0, size) ? dest : NULL;
}

void* emucxl_memmove(void* dest, const void* src, size_t size) { return emucxl_memcpy(dest, src, size); }

/* ---- questions ----------------------------------------------------------------------------------------- */

static bool query(void* ptr, emx_allocation* found) {
    emx_context* context = require_context();
    return context != NULL && emx_query(context, ptr, found) == EMX_OK;
}

bool emucxl_is_local(void* ptr) { return emucxl_get_numa_node(ptr) == LOCAL_MEMORY; }

int emucxl_get_numa_node(void* ptr) {
    emx_allocation found;
    return query(ptr, &found) ? (int)found.tier : -1;
}

size_t emucxl_get_size(void* ptr) {
    emx_allocation found;
    return query(ptr, &found) ? found.size_bytes : 0;
}

size_t emucxl_stats(int numa_node) {
    emx_tier_stats stats;
    emx_context* context = require_context();
    if (context == NULL || numa_node < 0) return 0;
    return emx_tier_get_stats(context, (emx_tier)numa_node, &stats) == EMX_OK ? stats.allocated_bytes : 0;
}
