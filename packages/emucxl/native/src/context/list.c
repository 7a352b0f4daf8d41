/* The contexts of the process: those that are open, so that a fork finds their locks, and the memory of
 * closed ones. */
#include <stdlib.h>
#include <string.h>

#include "context/internal.h"
#include "fork.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of both lists */
static emx_context* open_contexts;
/* Kept so that a stale handle is refused instead of read from memory that is gone. */
static emx_context* closed_contexts;

emx_context* context_take_memory(void) {
    pthread_mutex_lock(&lock);
    emx_context* context = closed_contexts;
    if (context != NULL) closed_contexts = context->next;
    pthread_mutex_unlock(&lock);
    if (context == NULL) return calloc(1, sizeof *context);
    memset(context, 0, sizeof *context);
    return context;
}

void context_keep_memory(emx_context* context) {
    pthread_mutex_lock(&lock);
    context->next = closed_contexts;
    closed_contexts = context;
    pthread_mutex_unlock(&lock);
}

void context_list(emx_context* context) {
    pthread_mutex_lock(&lock);
    context->next = open_contexts;
    open_contexts = context;
    pthread_mutex_unlock(&lock);
}

void context_unlist(emx_context* context) {
    pthread_mutex_lock(&lock);
    emx_context** link = &open_contexts;
    while (*link != NULL && *link != context) link = &(*link)->next;
    if (*link != NULL) *link = context->next;
    pthread_mutex_unlock(&lock);
}

/* ---- forks --------------------------------------------------------------------------------------------- */

static void hold(void) {
    pthread_mutex_lock(&lock);
    for (emx_context* each = open_contexts; each != NULL; each = each->next) {
        pthread_mutex_lock(&each->adding);
        pthread_mutex_lock(&each->pins.lock);
    }
}

/* No copy is in flight in a child: the engines' threads are its parent's. */
static void let_go(bool is_child) {
    for (emx_context* each = open_contexts; each != NULL; each = each->next) {
        if (is_child) pin_table_forget(&each->pins);
        pthread_mutex_unlock(&each->pins.lock);
        pthread_mutex_unlock(&each->adding);
    }
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void prepare(void) { fork_watch(FORK_CONTEXTS, hold, let_go); }
