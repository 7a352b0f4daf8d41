/* A batch of copies: checked, pinned, priced, run. What runs it, and when, is copy/engine.c's business. */
#ifndef EMX_COPY_BATCH_H
#define EMX_COPY_BATCH_H

#include "context/internal.h"
#include "emucxl/copy.h"

/* A side that lies in no tier has no tier and no base. */
typedef struct copy_side {
    tier* tier;
    void* base; /* of the block, which is pinned while the batch lives; NULL where an earlier side has it */
} copy_side;

typedef struct copy_batch {
    size_t num_copies;
    transfer* transfers;
    copy_side* sides;                 /* two for each copy: destination, source */
    const emx_copy_request* requests; /* each piece of each pattern */
} copy_batch;

/* Checks every pattern and pins what they touch; all or nothing. */
emx_status copy_batch_create(emx_context* context, const emx_copy_pattern* patterns, size_t num_patterns,
                             copy_batch* batch);
void copy_batch_destroy(emx_context* context, copy_batch* batch);

/* Moves the bytes, and waits for their modelled time if `wait`; else that is known already, to be counted as
 * the tiers' delay. Where memory went bad since the batch was made (poison, a fenced region), the batch ends
 * before that copy, with its status. Once `stop` is set it ends early; the copies that were whole by then are
 * counted. */
emx_status copy_batch_run(emx_context* context, copy_batch* batch, bool wait, uint64_t priced_ns,
                          const stop_flag* stop);

#endif
