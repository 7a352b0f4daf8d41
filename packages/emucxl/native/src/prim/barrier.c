#include "prim/barrier.h"

#include <sys/syscall.h>
#include <unistd.h>

enum { PRIVATE_EXPEDITED = 1 << 3, REGISTER_PRIVATE_EXPEDITED = 1 << 4 }; /* of linux/membarrier.h, 4.14 */

bool barrier_is_unequal;

static bool membarrier(int command) { return syscall(SYS_membarrier, command, 0, 0) == 0; }

void barrier_prepare(void) {
    barrier_is_unequal = membarrier(REGISTER_PRIVATE_EXPEDITED) && membarrier(PRIVATE_EXPEDITED);
}

void barrier_heavy(void) {
    /* Once it worked it only fails for want of the registration, which a fork may have lost. */
    if (barrier_is_unequal && !membarrier(PRIVATE_EXPEDITED)) {
        membarrier(REGISTER_PRIVATE_EXPEDITED);
        membarrier(PRIVATE_EXPEDITED);
    }
}
