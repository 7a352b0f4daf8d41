/* The copy engine: a queue of batches, and threads that take them in order.
 *
 * On the real clock a worker prices a batch while it moves it. On the virtual clock the model knows the end
 * of a batch when it is submitted: each worker stands for a channel, the batch takes the one that is free
 * first, and what the threads do later is only to move the bytes. So the modelled times do not depend on how
 * threads are scheduled.
 *
 * Thread safety: one lock guards the queue, the completions' states and the channels.
 *
 * Invariants
 *   1. The core lives as long as the engine or a completion does, so that completions may outlive the engine.
 *   2. `clock` of the core is NULL once the engine is closed; by then it has reached the end of every batch that
 *      was not cancelled.
 *   3. A batch whose `stop` is set ends with EMX_E_CANCELLED, whatever it came to.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "copy/batch.h"
#include "fail.h"
#include "handle.h"
#include "prim/process.h"

#define MAX_THREADS 64
#define DETAIL_BYTES 256

typedef struct core {
    pthread_mutex_t lock;
    pthread_cond_t work; /* something was queued, or the engine closes */
    pthread_cond_t done; /* a batch is done */
    model_clock* clock;
    uint32_t owners;     /* the engine, and each completion */
    uint64_t fork_count; /* at creation */
} core;

/* What stands for a thread on the virtual clock. */
typedef struct channel {
    uint64_t free_ns, num_batches;
} channel;

struct emx_completion {
    handle handle;
    core* core;
    copy_batch batch;
    struct emx_completion* next;
    emx_engine* engine; /* until the batch is done */
    stop_flag stop;     /* set when it is cancelled */
    /* Virtual clock: when the batch begins and arrives, and its channel with the place there. */
    uint64_t start_ns, end_ns, place;
    uint32_t channel;
    bool is_done;
    emx_status status;
    char detail[DETAIL_BYTES];
};

struct emx_engine {
    handle handle;
    core* core;
    emx_context* context;
    emx_completion *first, *last; /* queued */
    uint32_t num_threads;
    bool closing;
    channel channels[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
};

/* ---- the core ------------------------------------------------------------------------------------------ */

static core* core_create(model_clock* clock) {
    core* made = calloc(1, sizeof *made);
    if (made == NULL) return NULL;
    made->clock = clock;
    made->owners = 1;
    made->fork_count = process_fork_count();
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->work, NULL);
    pthread_cond_init(&made->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return made;
}

/* A fork's child has neither the threads nor, for certain, a lock that is free or a queue that is whole: it
 * leaves the core as it is, which is memory of its own that nobody uses any more. */
static bool core_is_inherited(const core* own) { return own->fork_count != process_fork_count(); }

static emx_status refuse_inherited(const char* what) {
    return fail(EMX_E_CLOSED,
                "the %s belongs to the process that this one was forked from; make a copy engine here", what);
}

/* Unlocks too. */
static void core_leave(core* left) {
    bool was_last = --left->owners == 0;
    pthread_mutex_unlock(&left->lock);
    if (!was_last) return;
    pthread_cond_destroy(&left->work);
    pthread_cond_destroy(&left->done);
    pthread_mutex_destroy(&left->lock);
    free(left);
}

/* ---- workers ------------------------------------------------------------------------------------------- */

static void run(emx_engine* engine, emx_completion* completion) {
    bool is_virtual = engine->context->clock.is_virtual;
    emx_status status = copy_batch_run(engine->context, &completion->batch, !is_virtual,
                                       completion->end_ns - completion->start_ns, &completion->stop);
    if (status != EMX_OK) snprintf(completion->detail, sizeof completion->detail, "%s", emx_error_detail());
    copy_batch_destroy(engine->context, &completion->batch);
    completion->status = status;
}

/* Holds the lock. */
static void finish(emx_completion* completion) {
    completion->is_done = true;
    if (stop_is_set(&completion->stop)) {
        completion->status = EMX_E_CANCELLED;
        snprintf(completion->detail, sizeof completion->detail, "the batch of copies was cancelled");
    }
    pthread_cond_broadcast(&completion->core->done);
}

static void* work(void* argument) {
    emx_engine* engine = argument;
    core* own = engine->core;
    pthread_mutex_lock(&own->lock);
    for (;;) {
        while (engine->first == NULL && !engine->closing) pthread_cond_wait(&own->work, &own->lock);
        emx_completion* taken = engine->first;
        if (taken == NULL) break;
        engine->first = taken->next;
        if (engine->first == NULL) engine->last = NULL;
        pthread_mutex_unlock(&own->lock);
        run(engine, taken);
        pthread_mutex_lock(&own->lock);
        finish(taken);
    }
    pthread_mutex_unlock(&own->lock);
    return NULL;
}

/* Signals are for the program's own threads. */
static emx_status start_threads(emx_engine* engine, uint32_t num_threads) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    while (engine->num_threads < num_threads && error == 0) {
        error = pthread_create(&engine->threads[engine->num_threads], NULL, work, engine);
        if (error == 0) engine->num_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error == 0
               ? EMX_OK
               : fail_system(error, "cannot start thread %u of %u", engine->num_threads + 1, num_threads);
}

emx_status emx_engine_create(emx_context* context, uint32_t num_threads, emx_engine** engine) {
    emx_status status = context_require(context);
    if (status != EMX_OK) return status;
    if (engine == NULL || num_threads < 1 || num_threads > MAX_THREADS)
        return fail(EMX_E_INVALID, "got %u threads; expected 1 to %d, and a place for the engine",
                    num_threads, MAX_THREADS);
    emx_engine* made = handle_alloc(HANDLE_ENGINE, sizeof *made);
    core* own = core_create(&context->clock);
    if (made == NULL || own == NULL) {
        handle_free(HANDLE_ENGINE, made);
        free(own);
        return fail(EMX_E_NO_MEMORY, "no memory for a copy engine");
    }
    made->core = own;
    made->context = context;
    handle_open(HANDLE_ENGINE, made);
    status = start_threads(made, num_threads);
    if (status == EMX_OK) *engine = made;
    else emx_engine_close(made);
    return status;
}

void emx_engine_close(emx_engine* engine) {
    if (!handle_is(HANDLE_ENGINE, engine)) return;
    core* own = engine->core;
    if (core_is_inherited(own)) {
        handle_free(HANDLE_ENGINE, engine);
        return;
    }
    pthread_mutex_lock(&own->lock);
    engine->closing = true;
    pthread_cond_broadcast(&own->work);
    pthread_mutex_unlock(&own->lock);
    for (uint32_t i = 0; i < engine->num_threads; i++) pthread_join(engine->threads[i], NULL);
    pthread_mutex_lock(&own->lock);
    if (own->clock->is_virtual)
        for (uint32_t i = 0; i < engine->num_threads; i++)
            model_clock_reach(own->clock, engine->channels[i].free_ns);
    own->clock = NULL;
    core_leave(own);
    handle_free(HANDLE_ENGINE, engine);
}

/* ---- batches ------------------------------------------------------------------------------------------- */

/* Virtual clock: the batch begins now, or when the channel that is free first is. */
static void price(emx_engine* engine, emx_completion* completion) {
    channel* taken = &engine->channels[0];
    for (uint32_t i = 1; i < engine->num_threads; i++)
        if (engine->channels[i].free_ns < taken->free_ns) taken = &engine->channels[i];
    const uint64_t now_ns = model_clock_now(engine->core->clock);
    completion->start_ns = now_ns > taken->free_ns ? now_ns : taken->free_ns;
    completion->end_ns =
        transfer_price(completion->batch.transfers, completion->batch.num_copies, completion->start_ns);
    completion->channel = (uint32_t)(taken - engine->channels);
    completion->place = ++taken->num_batches;
    taken->free_ns = completion->end_ns;
}

/* Virtual clock: from now on, where no other batch has its time behind it. */
static void free_channel(const emx_completion* cancelled) {
    channel* taken = &cancelled->engine->channels[cancelled->channel];
    const uint64_t now_ns = model_clock_now(cancelled->core->clock);
    if (taken->num_batches == cancelled->place)
        taken->free_ns = now_ns > cancelled->start_ns ? now_ns : cancelled->start_ns;
}

static void enqueue(emx_engine* engine, emx_completion* completion) {
    core* own = engine->core;
    pthread_mutex_lock(&own->lock);
    if (own->clock->is_virtual) price(engine, completion);
    own->owners++;
    completion->engine = engine;
    if (engine->last != NULL) engine->last->next = completion;
    else engine->first = completion;
    engine->last = completion;
    pthread_cond_signal(&own->work);
    pthread_mutex_unlock(&own->lock);
}

/* Takes a batch that no thread has begun out of the queue. */
static bool unqueue(emx_completion* completion) {
    emx_engine* engine = completion->engine;
    emx_completion *before = NULL, *found = engine->first;
    while (found != NULL && found != completion) {
        before = found;
        found = found->next;
    }
    if (found == NULL) return false;
    if (before != NULL) before->next = completion->next;
    else engine->first = completion->next;
    if (engine->last == completion) engine->last = before;
    return true;
}

static emx_status check_submit(emx_engine* engine, const void* copies, size_t count, const char* what,
                               emx_completion** completion) {
    const emx_status known = handle_require(HANDLE_ENGINE, engine);
    if (known != EMX_OK) return known;
    if (completion == NULL || (copies == NULL && count > 0))
        return fail(EMX_E_INVALID, "got NULL; expected %zu %s and a place for the completion", count, what);
    return core_is_inherited(engine->core) ? refuse_inherited("copy engine") : EMX_OK;
}

emx_status emx_engine_submit(emx_engine* engine, const emx_copy_request* requests, size_t num_requests,
                             emx_completion** completion) {
    emx_status status = check_submit(engine, requests, num_requests, "requests", completion);
    if (status != EMX_OK) return status;
    emx_copy_pattern* patterns =
        num_requests <= SIZE_MAX / sizeof *patterns ? malloc(num_requests * sizeof *patterns) : NULL;
    if (patterns == NULL && num_requests > 0)
        return fail(EMX_E_NO_MEMORY, "no memory for a batch of %zu copies", num_requests);
    for (size_t i = 0; i < num_requests; i++)
        patterns[i] =
            (emx_copy_pattern){requests[i].destination, requests[i].source, requests[i].size_bytes, 1, 0, 0};
    status = emx_engine_submit_patterns(engine, patterns, num_requests, completion);
    free(patterns);
    return status;
}

emx_status emx_engine_submit_patterns(emx_engine* engine, const emx_copy_pattern* patterns,
                                      size_t num_patterns, emx_completion** completion) {
    emx_status status = check_submit(engine, patterns, num_patterns, "patterns", completion);
    if (status != EMX_OK) return status;
    emx_completion* made = handle_alloc(HANDLE_COMPLETION, sizeof *made);
    if (made == NULL) return fail(EMX_E_NO_MEMORY, "no memory for a batch of %zu copies", num_patterns);
    made->core = engine->core;
    status = copy_batch_create(engine->context, patterns, num_patterns, &made->batch);
    if (status != EMX_OK) {
        handle_free(HANDLE_COMPLETION, made);
        return status;
    }
    handle_open(HANDLE_COMPLETION, made);
    *completion = made;
    enqueue(engine, made);
    return EMX_OK;
}

/* ---- completions --------------------------------------------------------------------------------------- */

/* Waits until the bytes are there; false if `timeout_ns` of the real clock passed first. Holds the lock. */
static bool await(emx_completion* completion, uint64_t timeout_ns) {
    core* own = completion->core;
    uint64_t now_ns = emx_now_ns(),
             deadline_ns = timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
    if (deadline_ns > (uint64_t)INT64_MAX) {
        while (!completion->is_done) pthread_cond_wait(&own->done, &own->lock);
        return true;
    }
    struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                                .tv_nsec = (long)(deadline_ns % 1000000000u)};
    while (!completion->is_done && emx_now_ns() < deadline_ns)
        pthread_cond_timedwait(&own->done, &own->lock, &deadline);
    return completion->is_done;
}

/* On the virtual clock time passes by waiting: to the batch's end, or as far as the timeout goes. */
static bool reach_end(model_clock* clock, uint64_t end_ns, uint64_t timeout_ns) {
    uint64_t now_ns = model_clock_now(clock);
    bool in_time = end_ns <= now_ns || end_ns - now_ns <= timeout_ns;
    model_clock_reach(clock, in_time ? end_ns : now_ns + timeout_ns);
    return in_time;
}

/* Whether it is too late to cancel. Holds the lock. */
static bool is_over(const emx_completion* completion) {
    const model_clock* clock = completion->core->clock;
    if (clock == NULL || stop_is_set(&completion->stop)) return true;
    return clock->is_virtual ? model_clock_now(clock) >= completion->end_ns : completion->is_done;
}

/* Holds the lock. */
static void cancel(emx_completion* completion) {
    stop_set(&completion->stop);
    if (completion->core->clock->is_virtual) free_channel(completion);
    const bool is_unbegun = unqueue(completion);
    if (is_unbegun) copy_batch_destroy(completion->engine->context, &completion->batch);
    if (is_unbegun || completion->is_done) finish(completion);
}

emx_status emx_completion_cancel(emx_completion* completion) {
    const emx_status known = handle_require(HANDLE_COMPLETION, completion);
    if (known != EMX_OK) return known;
    core* own = completion->core;
    if (core_is_inherited(own)) return refuse_inherited("batch of copies");
    pthread_mutex_lock(&own->lock);
    if (!is_over(completion)) cancel(completion);
    pthread_mutex_unlock(&own->lock);
    return EMX_OK;
}

emx_status emx_completion_wait(emx_completion* completion, uint64_t timeout_ns) {
    const emx_status known = handle_require(HANDLE_COMPLETION, completion);
    if (known != EMX_OK) return known;
    core* own = completion->core;
    if (core_is_inherited(own)) return refuse_inherited("batch of copies");
    pthread_mutex_lock(&own->lock);
    bool is_virtual = own->clock != NULL && own->clock->is_virtual && !stop_is_set(&completion->stop);
    bool in_time =
        is_virtual ? reach_end(own->clock, completion->end_ns, timeout_ns) : await(completion, timeout_ns);
    if (is_virtual && in_time) await(completion, UINT64_MAX);
    const emx_status status = in_time ? completion->status : EMX_E_TIMEOUT;
    pthread_mutex_unlock(&own->lock);
    if (status == EMX_OK) return EMX_OK;
    if (!in_time)
        return fail(EMX_E_TIMEOUT, "waited %llu ns for a batch of copies that is not done",
                    (unsigned long long)timeout_ns);
    return fail(status, "%s", completion->detail);
}

void emx_completion_release(emx_completion* completion) {
    if (!handle_is(HANDLE_COMPLETION, completion)) return;
    core* own = completion->core;
    if (core_is_inherited(own)) {
        handle_free(HANDLE_COMPLETION, completion);
        return;
    }
    pthread_mutex_lock(&own->lock);
    await(completion, UINT64_MAX);
    core_leave(own);
    handle_free(HANDLE_COMPLETION, completion);
}
