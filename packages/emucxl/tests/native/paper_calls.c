/* The promises of emucxl_lib.h, call by call. Arguments: the names of the checks to run; the first that does
 * not hold ends the program with its line. */
#include <emucxl_lib.h>

/* As the published programs repeat them. */
#define LOCAL_MEMORY 0
#define REMOTE_MEMORY 1
#define PAGE_SIZE 4096

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                  \
    do {                                                                                                  \
        if (!(condition)) {                                                                               \
            fprintf(stderr, "line %d: %s; last failure: %s\n", __LINE__, #condition, emx_error_detail()); \
            exit(1);                                                                                      \
        }                                                                                                 \
    } while (0)

static bool is_filled(const unsigned char* bytes, int value, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (bytes[i] != value) return false;
    return true;
}

static bool says(const char* words) { return strstr(emx_error_detail(), words) != NULL; }

/* Before emucxl_init and after the last emucxl_exit, every call declines. */
static void closed(void) {
    char byte = 0;
    CHECK(emucxl_alloc(16, LOCAL_MEMORY) == NULL && says("call emucxl_init() first"));
    CHECK(emucxl_resize(&byte, LOCAL_MEMORY, 1, 2) == NULL);
    CHECK(emucxl_migrate(&byte, REMOTE_MEMORY, 1) == NULL);
    CHECK(!emucxl_read(&byte, 0, &byte, 1) && says("call emucxl_init() first"));
    CHECK(!emucxl_write(&byte, 0, &byte, 1));
    CHECK(!emucxl_is_local(&byte) && emucxl_get_numa_node(&byte) == -1);
    CHECK(emucxl_get_size(&byte) == 0 && emucxl_stats(LOCAL_MEMORY) == 0);
    emucxl_free(&byte, 1);
    emucxl_exit();
    CHECK(says("without emucxl_init"));
}

static void nested_init(void) {
    emucxl_init();
    emucxl_init();
    char* kept = emucxl_alloc(100, LOCAL_MEMORY);
    CHECK(kept != NULL);
    emucxl_exit();
    CHECK(emucxl_get_size(kept) == 100);
    CHECK(emucxl_alloc(100, REMOTE_MEMORY) != NULL);
    emucxl_exit(); /* frees both */
    closed();
    emucxl_init();
    CHECK(emucxl_stats(LOCAL_MEMORY) == 0 && emucxl_stats(REMOTE_MEMORY) == 0);
    emucxl_exit();
}

static void alloc_and_free(void) {
    emucxl_init();
    for (int node = LOCAL_MEMORY; node <= REMOTE_MEMORY; node++) {
        for (size_t size = 1; size <= 3 * PAGE_SIZE; size = size * 2 + 1) {
            unsigned char* bytes = emucxl_alloc(size, node);
            CHECK(bytes != NULL && is_filled(bytes, 0, size));
            CHECK((uintptr_t)bytes % (size >= PAGE_SIZE ? PAGE_SIZE : 16) == 0);
            CHECK(emucxl_get_size(bytes) == size && emucxl_get_numa_node(bytes) == node);
            CHECK(emucxl_get_size(bytes + size - 1) == size && emucxl_get_size(bytes + size) == 0);
            CHECK(emucxl_is_local(bytes + size / 2) == (node == LOCAL_MEMORY));
            CHECK(emucxl_stats(node) == size && emucxl_stats(1 - node) == 0);
            memset(bytes, 0xab, size);
            emucxl_free(bytes, 1); /* all of it, whatever is said */
            CHECK(emucxl_stats(node) == 0 && emucxl_get_size(bytes) == 0 &&
                  emucxl_get_numa_node(bytes) == -1);
            emucxl_free(bytes, size); /* refused, not crashed on */
        }
    }
    CHECK(emucxl_alloc(0, LOCAL_MEMORY) == NULL);
    CHECK(emucxl_alloc(16, 2) == NULL && says("expected LOCAL_MEMORY (0) or REMOTE_MEMORY (1)"));
    CHECK(emucxl_alloc(16, -1) == NULL);
    CHECK(emucxl_alloc(SIZE_MAX, LOCAL_MEMORY) == NULL &&
          emucxl_alloc((size_t)1 << 50, REMOTE_MEMORY) == NULL);
    CHECK(emucxl_stats(2) == 0 && emucxl_stats(-1) == 0);
    char plain = 0;
    emucxl_free(NULL, 1);
    emucxl_free(&plain, 1);
    CHECK(emucxl_get_size(&plain) == 0 && emucxl_get_numa_node(NULL) == -1 && !emucxl_is_local(NULL));
    emucxl_exit();
}

static void resize(void) {
    emucxl_init();
    for (int from = LOCAL_MEMORY; from <= REMOTE_MEMORY; from++)
        for (int to = LOCAL_MEMORY; to <= REMOTE_MEMORY; to++) {
            unsigned char* bytes = emucxl_alloc(100, from);
            memset(bytes, 7, 100);
            bytes = emucxl_resize(bytes, to, 5000, 10000); /* the real size counts, not the 5000 */
            CHECK(bytes != NULL && emucxl_get_numa_node(bytes) == to && emucxl_get_size(bytes) == 10000);
            CHECK(is_filled(bytes, 7, 100) && is_filled(bytes + 100, 0, 9900));
            bytes = emucxl_resize(bytes, from, 10000, 50); /* shrinking overruns nothing */
            CHECK(bytes != NULL && emucxl_get_numa_node(bytes) == from && emucxl_get_size(bytes) == 50);
            CHECK(is_filled(bytes, 7, 50));
            CHECK(emucxl_resize(bytes, to, 50, 0) == NULL && emucxl_resize(bytes, 7, 50, 60) == NULL);
            CHECK(emucxl_resize(bytes, to, 50, (size_t)1 << 50) == NULL);
            CHECK(emucxl_resize(bytes + 1, to, 50, 60) == NULL && says("1 bytes into an allocation"));
            CHECK(emucxl_get_size(bytes) == 50 && is_filled(bytes, 7, 50)); /* as it was */
            emucxl_free(bytes, 50);
        }
    CHECK(emucxl_stats(LOCAL_MEMORY) == 0 && emucxl_stats(REMOTE_MEMORY) == 0);
    emucxl_exit();
}

static void migrate(void) {
    emucxl_init();
    unsigned char *bytes = emucxl_alloc(3000, LOCAL_MEMORY), *other = emucxl_alloc(64, REMOTE_MEMORY);
    memset(bytes, 9, 3000);
    bytes = emucxl_migrate(bytes, REMOTE_MEMORY, 3000);
    CHECK(bytes != NULL && !emucxl_is_local(bytes) && is_filled(bytes, 9, 3000));
    CHECK(emucxl_migrate(bytes, REMOTE_MEMORY, 3000) == bytes);
    bytes = emucxl_migrate(bytes, LOCAL_MEMORY, 10); /* all of it moves */
    CHECK(bytes != NULL && emucxl_get_size(bytes) == 3000 && is_filled(bytes, 9, 3000));
    bytes = emucxl_migrate(bytes, REMOTE_MEMORY, 4000); /* and nothing is read beyond it */
    CHECK(emucxl_get_size(bytes) == 4000 && is_filled(bytes, 9, 3000) && is_filled(bytes + 3000, 0, 1000));
    CHECK(is_filled(other, 0, 64));
    CHECK(emucxl_migrate(bytes, 5, 4000) == NULL && emucxl_migrate(NULL, LOCAL_MEMORY, 1) == NULL);
    CHECK(emucxl_stats(REMOTE_MEMORY) == 4064 && emucxl_stats(LOCAL_MEMORY) == 0);
    emucxl_exit();
}

static void read_and_write(void) {
    emucxl_init();
    unsigned char *bytes = emucxl_alloc(100, REMOTE_MEMORY), *local = emucxl_alloc(8, LOCAL_MEMORY),
                  buffer[100];
    CHECK(emucxl_write(bytes, 90, "0123456789", 10));
    CHECK(memcmp(bytes + 90, "0123456789", 10) == 0 && is_filled(bytes, 0, 90));
    memset(buffer, 0xee, sizeof buffer);
    CHECK(emucxl_read(bytes, 90, buffer, 10)); /* the index is the memory's, not the buffer's */
    CHECK(memcmp(buffer, "0123456789", 10) == 0 && is_filled(buffer + 10, 0xee, 90));
    CHECK(emucxl_read(bytes + 90, 2, buffer, 8) && memcmp(buffer, "23456789", 8) == 0); /* from within */
    CHECK(emucxl_read(bytes, 90, local, 8) && memcmp(local, "01234567", 8) == 0);
    CHECK(!emucxl_read(bytes, 90, local, 9)); /* the buffer is bounded too, where it is emucxl's */
    CHECK(!emucxl_read(bytes, 91, buffer, 10) && says("end of the allocation"));
    CHECK(!emucxl_write(bytes, 91, buffer, 10) && !emucxl_write(bytes, 0, buffer, SIZE_MAX));
    CHECK(!emucxl_read(bytes, -1, buffer, 1) && !emucxl_write(bytes, -1, buffer, 1));
    CHECK(!emucxl_read(bytes, 0, buffer, 0) && !emucxl_read(NULL, 0, buffer, 1) &&
          !emucxl_write(bytes, 0, NULL, 1));
    CHECK(!emucxl_read(buffer, 0, buffer + 50, 10) && says("on neither node"));
    emucxl_free(bytes, 100);
    CHECK(!emucxl_read(bytes, 0, buffer, 1) && !emucxl_write(bytes, 0, buffer, 1)); /* after free: an error */
    emucxl_exit();
}

static void memory_calls(void) {
    unsigned char plain[64], other[64];
    /* Memory of no node needs no init. */
    CHECK(emucxl_memset(plain, 0, 5, 64) == plain && is_filled(plain, 5, 64));
    emucxl_init();
    unsigned char *bytes = emucxl_alloc(64, REMOTE_MEMORY), *local = emucxl_alloc(64, LOCAL_MEMORY);
    CHECK(emucxl_memset(bytes, 16, 0x1ff, 16) == bytes);
    CHECK(is_filled(bytes, 0, 16) && is_filled(bytes + 16, 0xff, 16) && is_filled(bytes + 32, 0, 32));
    CHECK(emucxl_memset(plain, 60, 1, 4) == plain && is_filled(plain, 5, 60) && is_filled(plain + 60, 1, 4));
    CHECK(emucxl_memset(bytes, 60, 1, 5) == NULL && emucxl_memset(bytes, -1, 1, 1) == NULL);
    CHECK(emucxl_memcpy(local, bytes, 64) == local && memcmp(local, bytes, 64) == 0);
    CHECK(emucxl_memcpy(other, local, 64) == other && memcmp(other, bytes, 64) == 0);
    CHECK(emucxl_memcpy(bytes, plain, 64) == bytes && memcmp(bytes, plain, 64) == 0);
    CHECK(emucxl_memmove(other, plain, 64) == other && memcmp(other, plain, 64) == 0);
    CHECK(emucxl_memcpy(bytes + 1, plain, 64) == NULL && emucxl_memmove(plain, bytes + 1, 64) == NULL);
    for (int i = 0; i < 64; i++) bytes[i] = plain[i] = (unsigned char)i;
    CHECK(emucxl_memmove(bytes + 8, bytes, 32) == bytes + 8 && memcmp(bytes + 8, plain, 32) == 0);
    CHECK(emucxl_memmove(plain + 4, plain, 32) == plain + 4 && plain[4] == 0 && plain[35] == 31);
    CHECK(emucxl_memcpy(bytes, plain, 0) == NULL && emucxl_memcpy(NULL, plain, 1) == NULL);
    CHECK(emucxl_memset(NULL, 0, 0, 1) == NULL && emucxl_memmove(plain, NULL, 1) == NULL);
    emucxl_exit();
}

/* A capacity of 4 MiB on each node, set by the test. */
static void full_node(void) {
    emucxl_init();
    void* blocks[64];
    int count = 0;
    while (count < 64 && (blocks[count] = emucxl_alloc(1 << 20, LOCAL_MEMORY)) != NULL) count++;
    CHECK(count >= 1 && count <= 4);
    CHECK(emucxl_stats(LOCAL_MEMORY) == (size_t)count << 20);
    CHECK(emucxl_resize(blocks[0], LOCAL_MEMORY, 1 << 20, 1 << 23) == NULL &&
          emucxl_get_size(blocks[0]) == 1 << 20);
    CHECK(emucxl_migrate(blocks[0], REMOTE_MEMORY, 1 << 20) != NULL);
    CHECK(emucxl_alloc(1 << 20, LOCAL_MEMORY) != NULL);
    emucxl_exit();
}

/* The environment asks for what cannot be: whatever is called says so, until it no longer does. */
static void bad_environment(void) {
    emucxl_init();
    CHECK(emucxl_alloc(16, LOCAL_MEMORY) == NULL && says("emucxl_init() failed: "));
    printf("%s\n", emx_error_detail());
    emucxl_exit();
    closed();
    unsetenv("EMUCXL_LOCAL_BYTES");
    unsetenv("EMUCXL_REMOTE_LATENCY");
    unsetenv("EMUCXL_REMOTE_LATENCY_NS");
    unsetenv("EMUCXL_LOCAL_BANDWIDTH_GBPS");
    unsetenv("EMUCXL_LOCAL_NUMA_NODE");
    unsetenv("EMUCXL_REMOTE_DAX");
    emucxl_init();
    CHECK(emucxl_alloc(16, LOCAL_MEMORY) != NULL);
    emucxl_exit();
}

static void* work(void* argument) {
    const int thread = (int)(intptr_t)argument;
    emucxl_init();
    for (int round = 0; round < 200; round++) {
        const size_t size = 1 + (size_t)(round * 37 + thread * 101) % 3000;
        unsigned char* bytes = emucxl_alloc(size, round % 2);
        CHECK(bytes != NULL && is_filled(bytes, 0, size));
        CHECK(emucxl_memset(bytes, 0, thread, size) == bytes);
        bytes = emucxl_migrate(bytes, (round + 1) % 2, size);
        CHECK(bytes != NULL && is_filled(bytes, thread, size));
        bytes = emucxl_resize(bytes, round % 2, size, 2 * size);
        CHECK(bytes != NULL && is_filled(bytes, thread, size) && is_filled(bytes + size, 0, size));
        CHECK(emucxl_get_size(bytes) == 2 * size);
        emucxl_free(bytes, 2 * size);
    }
    emucxl_exit();
    return NULL;
}

static void threads(void) {
    pthread_t started[4];
    emucxl_init();
    for (intptr_t i = 0; i < 4; i++) CHECK(pthread_create(&started[i], NULL, work, (void*)(i + 1)) == 0);
    for (int i = 0; i < 4; i++) pthread_join(started[i], NULL);
    CHECK(emucxl_stats(LOCAL_MEMORY) == 0 && emucxl_stats(REMOTE_MEMORY) == 0);
    emucxl_exit();
}

static const struct {
    const char* name;
    void (*run)(void);
} checks[] = {
    {"closed", closed},
    {"nested_init", nested_init},
    {"alloc_and_free", alloc_and_free},
    {"resize", resize},
    {"migrate", migrate},
    {"read_and_write", read_and_write},
    {"memory_calls", memory_calls},
    {"full_node", full_node},
    {"bad_environment", bad_environment},
    {"threads", threads},
};

int main(int argc, char** argv) {
    for (int argument = 1; argument < argc; argument++)
        for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
            if (strcmp(argv[argument], checks[i].name) == 0) checks[i].run();
    return 0;
}
