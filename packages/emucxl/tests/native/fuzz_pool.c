/* Opens and uses pools whose tables were damaged at random: every call gives an answer, none crashes, and
 * nothing outside of the pool is mapped.
 *
 *   fuzz_pool PATH ROUNDS SEED
 *
 * Each round damages a copy of one pool (it has live regions, one that grows, poison, and a host that was
 * killed) in one to eight places, and works on it in a process of its own. Prints how often the damage was
 * refused at once.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pool/layout.h"
#include "require.h"
#include "splitmix64.h"

enum { EXTENT = 4096, EXTENTS = 32, REGIONS = 8, WORK_SECONDS = 60 };

static uint64_t random_state;

static uint64_t draw(uint64_t below) { return splitmix64(&random_state) % below; }

static const emx_join_config QUIET = {.struct_bytes = sizeof QUIET, .flags = EMX_JOIN_NO_HEARTBEAT};
static const emx_carve_config PERSISTENT = {.struct_bytes = sizeof PERSISTENT, .flags = EMX_CARVE_PERSISTENT};

/* A pool with a bit of everything, as the bytes of its file. */
static unsigned char* make_image(const char* path, size_t* num_bytes) {
    const emx_pool_config config = {.struct_bytes = sizeof config,
                                    .size_bytes = EXTENTS * EXTENT,
                                    .extent_bytes = EXTENT,
                                    .max_regions = REGIONS};
    emx_pool* pool;
    emx_host* host;
    emx_region* region;
    unlink(path);
    REQUIRE(emx_pool_create(path, &config, &pool) == EMX_OK);
    REQUIRE(emx_pool_join(pool, "one", &QUIET, &host) == EMX_OK);
    REQUIRE(emx_host_carve(host, "plain", 3 * EXTENT, NULL, &region) == EMX_OK);
    REQUIRE(emx_host_carve(host, "kept", 2 * EXTENT, &PERSISTENT, &region) == EMX_OK);
    REQUIRE(emx_region_poison(region, 100, 1) == EMX_OK);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        REQUIRE(emx_pool_open(path, 0, &pool) == EMX_OK &&
                emx_pool_join(pool, "dead", &QUIET, &host) == EMX_OK);
        REQUIRE(emx_host_carve(host, "left", 2 * EXTENT, NULL, &region) == EMX_OK);
        REQUIRE(emx_host_open(host, "plain", false, &region) == EMX_OK);
        raise(SIGKILL);
    }
    REQUIRE(waitpid(child, NULL, 0) == child);
    struct stat status;
    const int fd = open(path, O_RDWR);
    REQUIRE(fd >= 0 && fstat(fd, &status) == 0);
    *num_bytes = (size_t)status.st_size;
    unsigned char* image = malloc(*num_bytes);
    REQUIRE(image && pread(fd, image, *num_bytes, 0) == (ssize_t)*num_bytes);
    close(fd);
    emx_pool_close(pool);
    return image;
}

static uint64_t checksum_of(const pool_header* header) {
    const unsigned char* bytes = (const unsigned char*)header;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < offsetof(pool_header, checksum); i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

/* Random bits, bytes and words, most of them where something is; now and then with a header that vouches for
 * itself. */
static void damage(unsigned char* bytes, size_t file_bytes) {
    pool_header header;
    memcpy(&header, bytes, sizeof header);
    const uint64_t starts[] = {0, header.hosts_offset, header.regions_offset, header.extents_offset,
                               header.poison_offset};
    const uint64_t sizes[] = {sizeof header, 3 * sizeof(host_record), 4 * sizeof(region_record), EXTENTS * 8,
                              4 * 8};
    for (uint64_t places = 1 + draw(8); places > 0; places--) {
        const uint64_t part = draw(16) == 0 ? 0 : 1 + draw(4);
        const uint64_t at = draw(8) ? starts[part] + draw(sizes[part]) : draw(header.data_offset);
        const uint64_t word = draw(2) ? draw(UINT64_MAX) : draw(16);
        switch (draw(3)) {
            case 0:
                bytes[at] ^= (unsigned char)(1u << draw(8));
                break;
            case 1:
                bytes[at] = (unsigned char)draw(256);
                break;
            default:
                memcpy(bytes + at / 8 * 8, &word, 8);
        }
    }
    if (draw(2)) {
        memcpy(&header, bytes, sizeof header);
        header.checksum = checksum_of(&header);
        memcpy(bytes, &header, sizeof header);
    }
    (void)file_bytes;
}

static void write_file(const char* path, const unsigned char* bytes, size_t num_bytes) {
    unlink(path);
    const int fd = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);
    REQUIRE(fd >= 0 && write(fd, bytes, num_bytes) == (ssize_t)num_bytes);
    close(fd);
}

/* Touches every byte that the region claims to have. */
static void touch(emx_region* region) {
    static unsigned char buffer[EXTENTS * EXTENT];
    emx_region_info info;
    if (emx_region_get_info(region, &info) != EMX_OK) return;
    REQUIRE(info.size_bytes <= sizeof buffer);
    (void)emx_region_read(region, 0, buffer, info.size_bytes);
    if (info.writable) (void)emx_region_fill(region, 0, 7, info.size_bytes);
    memcpy(buffer, info.base, info.size_bytes);
    (void)emx_region_check_access(region, info.size_bytes - 1, 1, false);
}

static void look_around(emx_pool* pool) {
    emx_host_info hosts[EMX_POOL_MAX_HOSTS];
    emx_region_entry regions[REGIONS];
    emx_poison_range ranges[16];
    emx_pool_info info;
    uint32_t count;
    REQUIRE(emx_pool_get_info(pool, &info) == EMX_OK && info.num_extents == EXTENTS);
    REQUIRE(emx_pool_list_hosts(pool, hosts, EMX_POOL_MAX_HOSTS, &count) == EMX_OK &&
            count <= EMX_POOL_MAX_HOSTS);
    REQUIRE(emx_pool_list_regions(pool, regions, REGIONS, &count) == EMX_OK && count <= REGIONS);
    REQUIRE(emx_pool_list_poison(pool, ranges, 16, &count) == EMX_OK);
    (void)emx_pool_check(pool);
}

static void use(emx_pool* pool) {
    const char* tags[] = {"plain", "kept", "left"};
    emx_region* region;
    emx_host* host;
    look_around(pool);
    (void)emx_pool_reclaim(pool, 0, NULL);
    look_around(pool);
    if (emx_pool_join(pool, "two", &QUIET, &host) != EMX_OK) return;
    for (int i = 0; i < 3; i++) {
        if (emx_host_open(host, tags[i], i != 0, &region) != EMX_OK) continue;
        touch(region);
        if (emx_region_resize(region, 4 * EXTENT) == EMX_OK) touch(region);
        if (emx_region_resize(region, EXTENT) == EMX_OK) touch(region);
        (void)emx_region_poison(region, 0, 64);
        if (i == 1) (void)emx_region_release(region);
    }
    if (emx_host_carve(host, "new", 5 * EXTENT, NULL, &region) == EMX_OK) touch(region);
    (void)emx_pool_poison(pool, 0, EXTENTS * EXTENT);
    (void)emx_host_heartbeat(host);
    emx_host_leave(host);
    (void)emx_pool_reclaim(pool, 0, NULL);
    look_around(pool);
}

static emx_status work(const char* path) {
    emx_pool* pool;
    alarm(WORK_SECONDS);
    const emx_status status = emx_pool_open(path, 0, &pool);
    if (status) return status;
    use(pool);
    emx_pool_close(pool);
    return EMX_OK;
}

int main(int argc, char** argv) {
    REQUIRE(argc == 4);
    size_t num_bytes;
    long refused = 0, used = 0;
    unsigned char *image = make_image(argv[1], &num_bytes), *damaged = malloc(num_bytes);
    REQUIRE(damaged);
    for (long round = 0; round < atol(argv[2]); round++) {
        random_state = strtoull(argv[3], NULL, 0) * 1000003 + (uint64_t)round;
        memcpy(damaged, image, num_bytes);
        damage(damaged, num_bytes);
        const bool cut = draw(32) == 0;
        write_file(argv[1], damaged, cut ? draw(num_bytes) : num_bytes);
        const pid_t child = fork();
        REQUIRE(child >= 0);
        if (child == 0) _exit(work(argv[1]) == EMX_OK ? 0 : 2);
        int status;
        REQUIRE(waitpid(child, &status, 0) == child);
        if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 2)) {
            fprintf(stderr, "round %ld of seed %s ended with wait status %#x\n", round, argv[3], status);
            return 1;
        }
        REQUIRE(!cut || WEXITSTATUS(status) == 2);
        refused += WEXITSTATUS(status) == 2;
        used += WEXITSTATUS(status) == 0;
    }
    free(image);
    free(damaged);
    unlink(argv[1]);
    printf("%ld refused, %ld used\n", refused, used);
    return 0;
}
