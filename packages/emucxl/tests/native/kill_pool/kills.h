/* A pool, hosts that are killed at each of their steps, and a host that survives them. */
#ifndef EMUCXL_TESTS_KILLS_H
#define EMUCXL_TESTS_KILLS_H

#include <stdbool.h>
#include <stdint.h>

#include "emucxl/pool.h"
#include "require.h"

enum { EXTENT = 4096, EXTENTS = 64 };

extern const char* path; /* of the pool */
extern int kill_signal;  /* that comes at a step */
extern const emx_join_config QUIET;
extern const emx_carve_config PERSISTENT;

/* pools.c */
emx_pool* make_pool(void);
emx_pool_info info_of(emx_pool* pool);
unsigned char* bytes_of(emx_region* region, uint64_t* size_bytes);
bool is_filled(emx_region* region, int value);
/* Takes all that is free, finds it zero, and leaves it dirty. */
void foul_free_extents(emx_host* host, emx_pool* pool);

/* operations.c: what a host does before it dies */
typedef void (*operation)(emx_pool* pool, emx_host* host);
typedef struct named_operation {
    const char* name;
    operation run;
} named_operation;
enum { NUM_OPERATIONS = 9 };
extern const named_operation OPERATIONS[NUM_OPERATIONS];
void do_adopt(emx_pool* pool, emx_host* host);
void do_reclaim(emx_pool* pool, emx_host* host);

/* deaths.c */
typedef struct survivor {
    emx_pool* pool;
    emx_host* host;
    emx_region *own, *shared;
} survivor;
survivor make_survivor(void);
void verify(const survivor* self);
void end(survivor* self);
/* Runs an operation as a new host, and ends the process; `kill_signal` comes at a step before, if it has so many. */
_Noreturn void run_until_signalled(const char* name, operation run, long at_step);
/* Runs an operation in a process that dies at a step. True: it did; false: the operation has fewer steps. */
bool dies(operation run, long at_step);
void run_steps(void);
void run_double(long stride);

/* stops.c */
void run_stop(long variant);

/* random.c */
void run_random(long num_kills, uint64_t seed);

#endif
