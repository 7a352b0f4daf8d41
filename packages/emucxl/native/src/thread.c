#include "thread.h"

#include <pthread.h>
#include <stdlib.h>

enum { MAX_ENDS = 2 };

_Thread_local thread_state* thread_own;

static thread_state shared = {.is_ending = true};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t thread_end;
static bool has_key;
static void (*ends[MAX_ENDS])(thread_state*);
static int num_ends;

static void end(void* state) {
    thread_own = &shared; /* for what other destructors of the thread still do */
    for (int i = 0; i < num_ends; i++) ends[i](state);
    free(state);
}

static void make_key(void) { has_key = pthread_key_create(&thread_end, end) == 0; }

void thread_watch_ends(void (*watching)(thread_state* state)) { ends[num_ends++] = watching; }

thread_state* thread_begin(void) {
    pthread_once(&once, make_key);
    thread_state* made = has_key ? calloc(1, sizeof *made) : NULL;
    if (made != NULL && pthread_setspecific(thread_end, made) != 0) {
        free(made);
        made = NULL;
    }
    return thread_own = made != NULL ? made : &shared;
}
