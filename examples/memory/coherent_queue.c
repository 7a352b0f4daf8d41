/* A ring between two hosts whose caches the program itself keeps coherent.
 *
 *     cc coherent_queue.c $(pkg-config --cflags --libs emucxl) -o coherent_queue
 *     ./coherent_queue software                  every flush and invalidate in its place: it works
 *     ./coherent_queue software flush-message    one of them left out: it fails
 *     ./coherent_queue hardware all              all of them left out: nothing is missed
 *
 * Two processes stand for the hosts. Each sees the shared memory through a cache of its own. Arguments: the
 * mode (hardware, software, uncached), what to leave out (nothing, all, or one of the six below), and how
 * many seconds to wait for the other host (default 5). */
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <emucxl.h>

enum { MESSAGES = 1000, SLOTS = 8, WORDS = 16 };

/* What each host writes has lines of its own. */
typedef struct ring {
    _Alignas(EMX_LINE_BYTES) uint64_t tail; /* messages sent: the producer's */
    _Alignas(EMX_LINE_BYTES) uint64_t head; /* messages taken: the consumer's */
    _Alignas(EMX_LINE_BYTES) uint64_t slots[SLOTS][WORDS];
} ring;

typedef struct host {
    emx_cache* cache;
    const char *name, *left_out;
    double timeout_s;
} host;

static void check(emx_status status) {
    if (status == EMX_OK) return;
    fprintf(stderr, "%s: %s\n", emx_status_name(status), emx_error_detail());
    exit(2);
}

static bool does(const host* host, const char* step) {
    return strcmp(host->left_out, "all") != 0 && strcmp(host->left_out, step) != 0;
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Reads the other host's index until it is at least `wanted`. */
static bool await(const host* host, size_t index, uint64_t wanted, const char* invalidate, const char* what) {
    const double deadline_s = now_s() + host->timeout_s;
    while (true) {
        uint64_t value;
        if (does(host, invalidate)) check(emx_cache_invalidate(host->cache, index, sizeof value));
        check(emx_cache_read(host->cache, index, &value, sizeof value));
        if (value >= wanted) return true;
        if (now_s() > deadline_s) {
            fprintf(stderr, "%s: waited %g s for %s: saw index %llu, expected %llu\n", host->name,
                    host->timeout_s, what, (unsigned long long)value, (unsigned long long)wanted);
            return false;
        }
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
}

static uint64_t word_of(uint64_t message, uint64_t word) { return (message + 1) * 1000003 + word; }

static size_t slot_of(uint64_t message) {
    return offsetof(ring, slots) + message % SLOTS * sizeof(uint64_t[WORDS]);
}

static bool produce(const host* host) {
    for (uint64_t message = 0; message < MESSAGES; message++) {
        const uint64_t room = message + 1 > SLOTS ? message + 1 - SLOTS : 0, sent = message + 1;
        uint64_t words[WORDS];
        if (!await(host, offsetof(ring, head), room, "invalidate-head", "room in the ring")) return false;
        for (uint64_t word = 0; word < WORDS; word++) words[word] = word_of(message, word);
        check(emx_cache_write(host->cache, slot_of(message), words, sizeof words));
        if (does(host, "flush-message")) check(emx_cache_flush(host->cache, slot_of(message), sizeof words));
        check(emx_cache_write(host->cache, offsetof(ring, tail), &sent, sizeof sent));
        if (does(host, "flush-tail")) check(emx_cache_flush(host->cache, offsetof(ring, tail), sizeof sent));
    }
    return true;
}

static bool is_whole(const host* host, uint64_t message, const uint64_t* words) {
    for (uint64_t word = 0; word < WORDS; word++) {
        if (words[word] == word_of(message, word)) continue;
        fprintf(stderr, "%s: stale bytes in message %llu: word %llu is %llu, expected %llu\n", host->name,
                (unsigned long long)message, (unsigned long long)word, (unsigned long long)words[word],
                (unsigned long long)word_of(message, word));
        return false;
    }
    return true;
}

static bool consume(const host* host, pid_t producer) {
    for (uint64_t message = 0; message < MESSAGES; message++) {
        const uint64_t taken = message + 1;
        uint64_t words[WORDS];
        if (!await(host, offsetof(ring, tail), taken, "invalidate-tail", "a message")) return false;
        if (does(host, "invalidate-message"))
            check(emx_cache_invalidate(host->cache, slot_of(message), sizeof words));
        check(emx_cache_read(host->cache, slot_of(message), words, sizeof words));
        if (!is_whole(host, message, words)) {
            kill(producer, SIGKILL);
            return false;
        }
        check(emx_cache_write(host->cache, offsetof(ring, head), &taken, sizeof taken));
        if (does(host, "flush-head")) check(emx_cache_flush(host->cache, offsetof(ring, head), sizeof taken));
    }
    return true;
}

static emx_cache* open_cache(void* memory, uint32_t mode) {
    const emx_cache_config config = {
        .struct_bytes = sizeof config, .mode = mode, .base = memory, .size_bytes = sizeof(ring)};
    emx_cache* cache;
    check(emx_cache_open(&config, &cache));
    return cache;
}

static uint32_t mode_named(const char* name) {
    static const char* const names[] = {"hardware", "software", "uncached"};
    for (uint32_t mode = 0; mode < 3; mode++)
        if (strcmp(name, names[mode]) == 0) return mode;
    fprintf(stderr, "got mode %s; expected hardware, software or uncached\n", name);
    exit(2);
}

int main(int argc, char** argv) {
    const uint32_t mode = mode_named(argc > 1 ? argv[1] : "software");
    const char* left_out = argc > 2 ? argv[2] : "nothing";
    const double timeout_s = argc > 3 ? atof(argv[3]) : 5.0;
    void* memory = mmap(NULL, sizeof(ring), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 2;

    const pid_t producer = fork();
    if (producer < 0) return 2;
    emx_cache* cache = open_cache(memory, mode); /* each process its own */
    if (producer == 0) {
        const bool done = produce(&(host){cache, "producer", left_out, timeout_s});
        emx_cache_close(cache);
        return done ? 0 : 1;
    }
    const bool done = consume(&(host){cache, "consumer", left_out, timeout_s}, producer);
    emx_cache_close(cache);
    int status;
    waitpid(producer, &status, 0);
    if (!done || status != 0) return 1;
    printf("%d messages arrived whole and in order\n", MESSAGES);
    return 0;
}
