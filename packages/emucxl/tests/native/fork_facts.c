/* Facts about fork() beside threads that are inside the library. Run with the name of one; without, it lists
 * them.
 *
 * Each forks many times, since what it is about takes the fork to fall between two instructions of another
 * thread. A child that hangs is ended by its alarm, and fails the fact.
 */
#include <emucxl.h>
#include <emucxl_lib.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define REQUIRE(condition)                                                                                   \
    ((condition) ? (void)0                                                                                   \
                 : (fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, emx_error_detail()), \
                    _exit(1)))

enum { NUM_FORKS = 60, NUM_THREADS = 2, CHILD_SECONDS = 100, MIB = 1 << 20 };

static atomic_bool stopping;

static emx_context* open_context(void) {
    const emx_context_config config = {.struct_bytes = sizeof config, .clock = EMX_CLOCK_VIRTUAL};
    emx_context* context = NULL;
    REQUIRE(emx_context_open(&config, &context) == EMX_OK);
    return context;
}

static emx_tier add_tier(emx_context* context, const char* name, uint32_t provider) {
    const emx_tier_config config = {
        .struct_bytes = sizeof config, .provider = provider, .name = name, .capacity_bytes = MIB, .fd = -1};
    emx_tier tier;
    REQUIRE(emx_tier_add(context, &config, &tier) == EMX_OK);
    return tier;
}

static void* alloc(emx_context* context, emx_tier tier, size_t size_bytes) {
    void* pointer = NULL;
    REQUIRE(emx_alloc(context, tier, size_bytes, 0, &pointer) == EMX_OK);
    return pointer;
}

static void open_and_close(void* unused) {
    (void)unused;
    emx_context* context = open_context();
    emx_tier tier = add_tier(context, "a", EMX_PROVIDER_ANON);
    add_tier(context, "s", EMX_PROVIDER_SHM);
    alloc(context, tier, 10);
    emx_context_close(context);
}

typedef struct job {
    void (*work)(void*);
    void* argument;
} job;

static void* repeat(void* argument) {
    const job* job = argument;
    while (!atomic_load(&stopping)) {
        job->work(job->argument);
        usleep(20); /* fork() takes the locks that the work holds; without a pause it could wait its turn for
                       long */
    }
    return NULL;
}

static void fork_and_wait(void (*in_child)(void*), void* argument) {
    int status;
    const pid_t child = fork();
    if (child == 0) {
        alarm(CHILD_SECONDS);
        in_child(argument);
        _exit(0);
    }
    REQUIRE(child > 0 && waitpid(child, &status, 0) == child);
    REQUIRE(!WIFSIGNALED(status) && WEXITSTATUS(status) == 0);
}

/* Forks while other threads do `work`. */
static void fork_beside(void (*work)(void*), void (*in_child)(void*), void* argument) {
    pthread_t threads[NUM_THREADS];
    job job = {work, argument};
    for (int i = 0; i < NUM_THREADS; i++) REQUIRE(pthread_create(&threads[i], NULL, repeat, &job) == 0);
    for (int i = 0; i < NUM_FORKS; i++) fork_and_wait(in_child, argument);
    atomic_store(&stopping, true);
    for (int i = 0; i < NUM_THREADS; i++) pthread_join(threads[i], NULL);
}

/* ---- facts --------------------------------------------------------------------------------------------- */

static void a_child_opens_contexts_while_threads_do(void) {
    fork_beside(open_and_close, open_and_close, NULL);
}

static void use_nodes(void* unused) {
    (void)unused;
    emucxl_init();
    void* pointer = emucxl_alloc(10, REMOTE_MEMORY);
    /* Another thread's exit was the last. */
    REQUIRE(pointer != NULL || strstr(emx_error_detail(), "emucxl_init") != NULL);
    emucxl_exit();
}

static void a_child_uses_the_nodes_while_a_thread_opens_them(void) {
    setenv("EMUCXL_LOCAL_BYTES", "1048576", 1); /* opening asks the kernel about every page of a node */
    setenv("EMUCXL_REMOTE_BYTES", "1048576", 1);
    fork_beside(use_nodes, use_nodes, NULL);
}

static void pin_and_unpin(void* argument) {
    emx_context* context = ((void**)argument)[0];
    void *from = ((void**)argument)[1], *to = ((void**)argument)[2];
    emx_engine* engine = ((void**)argument)[3];
    emx_completion* completion;
    const emx_copy_request request = {to, from, 4096};
    (void)context;
    REQUIRE(emx_engine_submit(engine, &request, 1, &completion) == EMX_OK);
    REQUIRE(emx_completion_wait(completion, UINT64_MAX) == EMX_OK);
    emx_completion_release(completion);
}

static void free_and_close(void* argument) {
    emx_context* context = ((void**)argument)[0];
    emx_engine* engine = ((void**)argument)[3];
    emx_completion* completion = NULL;
    const emx_copy_request request = {((void**)argument)[2], ((void**)argument)[1], 4096};
    REQUIRE(emx_engine_submit(engine, &request, 1, &completion) == EMX_E_CLOSED);
    REQUIRE(strstr(emx_error_detail(), "forked") != NULL);
    REQUIRE(emx_free(context, ((void**)argument)[1]) == EMX_OK); /* no copy of the child uses it */
    add_tier(context, "child", EMX_PROVIDER_ANON);
    emx_engine_close(engine);
    emx_context_close(context);
}

static void an_engine_ends_at_once_in_a_child(void) {
    emx_context* context = open_context();
    const emx_tier tier = add_tier(context, "a", EMX_PROVIDER_ANON);
    emx_engine* engine;
    REQUIRE(emx_engine_create(context, 2, &engine) == EMX_OK);
    void* used[] = {context, alloc(context, tier, 4096), alloc(context, tier, 4096), engine};
    fork_beside(pin_and_unpin, free_and_close, used);
    emx_engine_close(engine);
    emx_context_close(context);
}

static void wait_and_release(void* argument) {
    emx_completion* completion = argument;
    REQUIRE(emx_completion_wait(completion, UINT64_MAX) == EMX_E_CLOSED);
    REQUIRE(emx_completion_cancel(completion) == EMX_E_CLOSED);
    emx_completion_release(completion);
}

static void a_batch_of_the_parent_is_not_waited_for(void) {
    emx_context* context = open_context();
    const emx_tier tier = add_tier(context, "a", EMX_PROVIDER_ANON);
    emx_engine* engine;
    emx_completion* completion;
    REQUIRE(emx_engine_create(context, 1, &engine) == EMX_OK);
    const emx_copy_request request = {alloc(context, tier, 1024), alloc(context, tier, 1024), 1024};
    REQUIRE(emx_engine_submit(engine, &request, 1, &completion) == EMX_OK);
    fork_and_wait(wait_and_release, completion);
    REQUIRE(emx_completion_wait(completion, UINT64_MAX) == EMX_OK);
    emx_completion_release(completion);
    emx_engine_close(engine);
    emx_context_close(context);
}

static void write_through(void* cache) { REQUIRE(emx_cache_write(cache, 0, "bytes", 5) == EMX_OK); }

static void close_cache(void* cache) {
    REQUIRE(emx_cache_write(cache, 0, "bytes", 5) == EMX_E_CLOSED);
    emx_cache_close(cache);
}

static void a_cache_is_closed_in_a_child(void) {
    static _Alignas(EMX_LINE_BYTES) char memory[4096];
    const emx_cache_config config = {.struct_bytes = sizeof config,
                                     .mode = EMX_COHERENCE_SOFTWARE,
                                     .base = memory,
                                     .size_bytes = sizeof memory};
    emx_cache* cache;
    REQUIRE(emx_cache_open(&config, &cache) == EMX_OK);
    fork_beside(write_through, close_cache, cache);
    emx_cache_close(cache);
}

/* ---- the list ------------------------------------------------------------------------------------------ */

#define FACT(name) {#name, name}
static const struct {
    const char* name;
    void (*prove)(void);
} facts[] = {
    FACT(a_child_opens_contexts_while_threads_do),
    FACT(a_child_uses_the_nodes_while_a_thread_opens_them),
    FACT(an_engine_ends_at_once_in_a_child),
    FACT(a_batch_of_the_parent_is_not_waited_for),
    FACT(a_cache_is_closed_in_a_child),
};

int main(int count, char** arguments) {
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++) {
        if (count < 2) puts(facts[i].name);
        else if (strcmp(facts[i].name, arguments[1]) == 0) facts[i].prove();
    }
    return 0;
}
