#include "handle.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"
#include "fork.h"

static const char* const names[NUM_HANDLE_KINDS] = {
    [HANDLE_LINK] = "link",          [HANDLE_CACHE] = "cache",
    [HANDLE_ENGINE] = "copy engine", [HANDLE_COMPLETION] = "completion",
    [HANDLE_POOL] = "pool",          [HANDLE_HOST] = "host",
    [HANDLE_REGION] = "region",
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static handle* kept[NUM_HANDLE_KINDS];

void* handle_alloc(handle_kind kind, size_t size_bytes) {
    pthread_mutex_lock(&lock);
    handle* found = kept[kind];
    if (found != NULL) kept[kind] = found->next_kept;
    pthread_mutex_unlock(&lock);
    if (found == NULL) return calloc(1, size_bytes);
    memset(found, 0, size_bytes);
    return found;
}

void handle_free(handle_kind kind, void* object) {
    if (object == NULL) return;
    handle* closed = object;
    closed->mark = 0;
    pthread_mutex_lock(&lock);
    closed->next_kept = kept[kind];
    kept[kind] = closed;
    pthread_mutex_unlock(&lock);
}

emx_status handle_refuse(handle_kind kind, const void* object) {
    if (object == NULL) return fail(EMX_E_INVALID, "got NULL; expected a %s", names[kind]);
    return fail(EMX_E_CLOSED, "got %p, which is no open %s: it was closed, or never was one", object,
                names[kind]);
}

static void hold(void) { pthread_mutex_lock(&lock); }

static void let_go(bool is_child) {
    (void)is_child;
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void prepare(void) { fork_watch(FORK_HANDLES, hold, let_go); }
