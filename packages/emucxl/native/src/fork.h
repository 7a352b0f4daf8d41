/* The locks that a fork takes, so that its child finds none of them held by a thread that it does not have.
 *
 * Every lock that outlives a call belongs here, or to an object that says EMX_E_CLOSED in a fork's child
 * (pools and what is joined to them, caches, copy engines). A fork waits for the calls that hold one: the
 * longest is an emucxl_init that calibrates.
 */
#ifndef EMX_FORK_H
#define EMX_FORK_H

#include <stdbool.h>

/* In the order in which calls nest them, and a fork takes them. */
typedef enum fork_rank {
    FORK_COMPAT,       /* compat/compat.c */
    FORK_CONTEXTS,     /* context/list.c: the lists, then each open context's `adding` and `pins` */
    FORK_REGION_TIERS, /* provider/region.c */
    FORK_HANDLES,      /* handle.c */
    FORK_PROMISES,     /* provider/memory.c */
    FORK_HEAPS,        /* heap/registry.c: the registry, then each heap's */
    FORK_SHARDS,       /* context/monitor.c: no lock, but the child's threads count as new ones */
    NUM_FORK_RANKS,
} fork_rank;

/* Names what holds a rank's locks before a fork, and lets go of them after it, in both processes. For
 * constructors, which run as the library is loaded: no lock is ever taken, and no fork seen, before. */
void fork_watch(fork_rank rank, void (*hold)(void), void (*let_go)(bool is_child));

#endif
