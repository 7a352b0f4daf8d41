#include "fork.h"

#include <pthread.h>
#include <stddef.h>

static struct {
    void (*hold)(void);
    void (*let_go)(bool is_child);
} watched[NUM_FORK_RANKS];
static bool is_registered;

static void before(void) {
    for (int rank = 0; rank < NUM_FORK_RANKS; rank++)
        if (watched[rank].hold != NULL) watched[rank].hold();
}

static void let_go(bool is_child) {
    for (int rank = NUM_FORK_RANKS; rank-- > 0;)
        if (watched[rank].let_go != NULL) watched[rank].let_go(is_child);
}

static void in_parent(void) { let_go(false); }
static void in_child(void) { let_go(true); }

void fork_watch(fork_rank rank, void (*hold)(void), void (*after)(bool is_child)) {
    watched[rank].hold = hold;
    watched[rank].let_go = after;
    if (!is_registered) pthread_atfork(before, in_parent, in_child);
    is_registered = true;
}
