/* A barrier that the rare side of a handshake runs on the processors of the other side too (membarrier(2)),
 * so that the side that runs often needs none.
 *
 * Of a thread that stores a and then loads b, and one that stores b, calls barrier_heavy() and loads a, at
 * least one sees the other's store, if all four are atomics and
 *   - barrier_is_unequal: the compiler keeps the first thread's order (atomic_signal_fence); or
 *   - not: the accesses are memory_order_seq_cst, and the first thread's store is an exchange.
 */
#ifndef EMX_PRIM_BARRIER_H
#define EMX_PRIM_BARRIER_H

#include <stdbool.h>

/* Whether the kernel does it. Set by barrier_prepare, which must run before the first use. */
extern bool barrier_is_unequal __attribute__((visibility("hidden")));

void barrier_prepare(void);
void barrier_heavy(void);

#endif
