/* The copy engine: copies that run while the caller computes.
 *
 * Memory that a copy in flight reads or writes must not be freed, resized or migrated until its completion is
 * done.
 */
#ifndef EMUCXL_COPY_H
#define EMUCXL_COPY_H

#include "context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct emx_engine emx_engine;
typedef struct emx_completion emx_completion;

/* Either side may lie in an allocation of the context, and is then bounded and priced, or in other memory of
 * the process, which is not. */
typedef struct emx_copy_request {
    void* destination;
    const void* source;
    size_t size_bytes;
} emx_copy_request;

/* `num_pieces` copies of `size_bytes` each, one stride apart on either side: the layers of a block, say, or the
 * columns of a matrix. The first is at `destination` and `source`. All pieces of a side lie in one allocation,
 * or in none. Pieces that are written must not overlap: where there are several, the destination's stride is at
 * least as long as a piece. */
typedef struct emx_copy_pattern {
    void* destination;
    const void* source;
    size_t size_bytes;
    size_t num_pieces;
    size_t destination_stride_bytes;
    size_t source_stride_bytes;
} emx_copy_pattern;

/* `num_threads` (1 to 64) workers, which sleep when there is nothing to do and while they wait for modelled
 * time. Each runs one batch at a time; batches begin in the order in which they were submitted. */
EMX_API emx_status emx_engine_create(emx_context* context, uint32_t num_threads, emx_engine** engine);
/* Waits for what is in flight (on the virtual clock, advances it to the end of that). Completions may be
 * waited for and released afterwards. */
EMX_API void emx_engine_close(emx_engine* engine);
/* Checks every request, then queues them all. The array may be reused at once. */
EMX_API emx_status emx_engine_submit(emx_engine* engine, const emx_copy_request* requests,
                                     size_t num_requests, emx_completion** completion);
/* The same of patterns, expanded here: a side of a pattern is looked up once, whatever the number of its pieces,
 * and not at all where the pattern before it has that side in the same allocation. */
EMX_API emx_status emx_engine_submit_patterns(emx_engine* engine, const emx_copy_pattern* patterns,
                                              size_t num_patterns, emx_completion** completion);
/* EMX_OK when every copy of the batch is done (and its bytes visible to this thread), EMX_E_TIMEOUT when
 * `timeout_ns` passed first (UINT64_MAX: never), otherwise how the batch failed: with the first copy that
 * could not be made; those before it were, those after it were not. 0 polls. On the virtual clock, waiting
 * advances it to the batch's end, or by `timeout_ns` where that comes first. */
EMX_API emx_status emx_completion_wait(emx_completion* completion, uint64_t timeout_ns);
/* Ends a batch early, unless it is done. One that no thread has begun is never begun; one that runs ends between
 * two of its pieces, or out of its modelled delay. Returns at once and may be called again; a batch that is done
 * stays as it is. From then on emx_completion_wait returns EMX_E_CANCELLED, as soon as no byte of the batch is
 * read or written any more: a few milliseconds at most, if the memory answers. Some, none or all of its bytes
 * may have been moved by then.
 *
 * On the virtual clock a batch is done when its modelled end has come. Waiting for a cancelled one leaves the
 * clock where it is, so that a timeout is of the real one. Its channel is free for the next batch; but batches
 * that were queued behind it, and what it has reserved of queues and links, keep their times. */
EMX_API emx_status emx_completion_cancel(emx_completion* completion);
/* Waits without bound for the batch's bytes, then frees the completion. Leaves the virtual clock where it is.
 */
EMX_API void emx_completion_release(emx_completion* completion);

#ifdef __cplusplus
}
#endif
#endif
