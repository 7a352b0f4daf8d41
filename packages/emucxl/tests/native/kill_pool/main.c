/* Kills hosts of a pool and looks at what they leave. Built with EMX_POOL_STEPS, so that every store into the
 * pool's tables is a step at which a host can be made to die.
 *
 *   kill_pool PATH steps            a host dies at each step of every operation; another one reclaims
 *   kill_pool PATH double STRIDE    so does the one that reclaims, at each of its steps, after every STRIDEth death
 *   kill_pool PATH stop VARIANT     a host is stopped at each step while another one does what may collide, and goes on
 *   kill_pool PATH random KILLS SEED   several hosts compete, and die at random instants
 *
 * Prints what it did; exits with 1 and a line on standard error at the first thing that is wrong.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kill_pool/kills.h"

const char* path;

int main(int argc, char** argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    REQUIRE(argc >= 3);
    path = argv[1];
    if (strcmp(argv[2], "steps") == 0) run_steps();
    else if (strcmp(argv[2], "double") == 0) run_double(atol(argv[3]));
    else if (strcmp(argv[2], "stop") == 0) run_stop(atol(argv[3]));
    else run_random(atol(argv[3]), strtoull(argv[4], NULL, 0));
    return 0;
}
