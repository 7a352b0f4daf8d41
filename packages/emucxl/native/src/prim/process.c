#include "prim/process.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int read_text(const char* path, char* text, size_t capacity) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    const ssize_t num_bytes = read(fd, text, capacity - 1);
    const int error = errno;
    close(fd);
    if (num_bytes < 0) return error;
    text[num_bytes] = 0;
    return 0;
}

typedef struct process_facts {
    char state;           /* of its first thread: Z also where that has ended and others go on */
    uint64_t num_threads; /* the first one counts until all are gone */
    uint64_t start_time;
} process_facts;

/* Of "self" or a PID. ENOENT or ESRCH: there is no such process. */
static int read_stat(const char* name, process_facts* facts) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%s/stat", name);
    const int error = read_text(path, text, sizeof text);
    if (error) return error;
    const char* after_name = strrchr(text, ')'); /* the name may hold anything, a ')' too */
    if (!after_name ||
        sscanf(after_name + 1,
               " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %" SCNu64 " %*d %" SCNu64,
               &facts->state, &facts->num_threads, &facts->start_time) != 3)
        return EIO;
    return 0;
}

static int read_boot_id(uint64_t boot_id[2]) {
    char text[64];
    const int error = read_text("/proc/sys/kernel/random/boot_id", text, sizeof text);
    if (error) return error;
    unsigned digits = 0;
    boot_id[0] = boot_id[1] = 0;
    for (const char* at = text; *at && digits < 32; at++) {
        const int value = *at >= '0' && *at <= '9'   ? *at - '0'
                          : *at >= 'a' && *at <= 'f' ? *at - 'a' + 10
                                                     : -1;
        if (value < 0) continue;
        boot_id[digits / 16] = boot_id[digits / 16] << 4 | (uint64_t)value;
        digits++;
    }
    return digits == 32 ? 0 : EIO;
}

static uint64_t namespace_of(const char* path) {
    struct stat facts;
    return stat(path, &facts) == 0 ? (uint64_t)facts.st_ino : 0; /* 0: a kernel without such namespaces */
}

/* In a new PID namespace whose /proc is still that of its parent, /proc/PID is somebody else. */
static bool proc_counts_as_we_do(void) {
    char target[32], own[32];
    const ssize_t num_bytes = readlink("/proc/self", target, sizeof target - 1);
    if (num_bytes < 0) return false;
    target[num_bytes] = 0;
    snprintf(own, sizeof own, "%d", (int)getpid());
    return strcmp(target, own) == 0;
}

int process_identify_self(process_identity* identity) {
    process_facts facts;
    *identity = (process_identity){.pid = (uint64_t)getpid()};
    int error = read_boot_id(identity->boot_id);
    if (!error) error = read_stat("self", &facts);
    if (error) return error;
    identity->start_time = facts.start_time;
    identity->pid_namespace = proc_counts_as_we_do() ? namespace_of("/proc/self/ns/pid") : UINT64_MAX;
    identity->time_namespace = namespace_of("/proc/self/ns/time");
    return 0;
}

bool process_shares_boot(const process_identity* self, const process_identity* other) {
    return self->boot_id[0] == other->boot_id[0] && self->boot_id[1] == other->boot_id[1];
}

bool process_shares_clock(const process_identity* self, const process_identity* other) {
    return process_shares_boot(self, other) && self->time_namespace == other->time_namespace;
}

bool process_shares_pids(const process_identity* self, const process_identity* other) {
    return process_shares_boot(self, other) && self->pid_namespace == other->pid_namespace &&
           self->pid_namespace != UINT64_MAX;
}

/* `start_time` 0: of any. */
static process_state look(uint64_t pid, uint64_t start_time) {
    char name[32];
    process_facts facts;
    if (pid == 0 || pid > INT32_MAX) return PROCESS_DEAD;
    snprintf(name, sizeof name, "%" PRIu64, pid);
    const int error = read_stat(name, &facts);
    if (error == ENOENT || error == ESRCH) /* or /proc hides it */
        return kill((pid_t)pid, 0) != 0 && errno == ESRCH ? PROCESS_DEAD : PROCESS_UNKNOWN;
    if (error) return PROCESS_UNKNOWN;
    if ((facts.state == 'Z' && facts.num_threads <= 1) || facts.state == 'X' || facts.state == 'x')
        return PROCESS_DEAD;
    return start_time && start_time != facts.start_time ? PROCESS_DEAD : PROCESS_ALIVE;
}

uint64_t process_own_pid(void) { return (uint64_t)getpid(); }

process_state process_look_at_pid(const process_identity* self, uint64_t pid) {
    return self->pid_namespace == UINT64_MAX ? PROCESS_UNKNOWN : look(pid, 0);
}

process_state process_look(const process_identity* self, const process_identity* other) {
    if (!process_shares_pids(self, other)) return PROCESS_UNKNOWN;
    if (process_shares_clock(self, other)) return look(other->pid, other->start_time);
    return look(other->pid, 0) == PROCESS_DEAD ? PROCESS_DEAD : PROCESS_UNKNOWN;
}

int process_kill(const process_identity* self, const process_identity* other) {
    if (!process_shares_pids(self, other) || !process_shares_clock(self, other)) return ESRCH;
    if (other->pid == 0 || other->pid > INT32_MAX) return ESRCH;
    const int descriptor = (int)syscall(SYS_pidfd_open, (pid_t)other->pid, 0);
    if (descriptor < 0) return errno;
    /* The descriptor pins the process, so that it is the one whose start time is read next, or none. */
    int error = look(other->pid, other->start_time) == PROCESS_ALIVE ? 0 : ESRCH;
    if (!error && syscall(SYS_pidfd_send_signal, descriptor, SIGKILL, NULL, 0) != 0) error = errno;
    close(descriptor);
    return error;
}

uint64_t process_boot_hash(void) {
    uint64_t boot_id[2];
    return read_boot_id(boot_id) == 0 ? (boot_id[0] ^ boot_id[1] * 0x9e3779b97f4a7c15u) | 1 : 0;
}

int64_t process_monotonic_offset_ns(void) {
    char text[256];
    int64_t seconds, nanoseconds;
    /* The file is about the namespace of future children, which differs in a process that just asked for a
     * new one. */
    if (namespace_of("/proc/self/ns/time") != namespace_of("/proc/self/ns/time_for_children")) return 0;
    if (read_text("/proc/self/timens_offsets", text, sizeof text) != 0) return 0;
    if (sscanf(text, "monotonic %" SCNd64 " %" SCNd64, &seconds, &nanoseconds) != 2) return 0;
    return seconds * 1000000000 + nanoseconds;
}

static uint64_t read_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t process_boottime_ns(void) { return read_clock(CLOCK_BOOTTIME); }
uint64_t process_monotonic_ns(void) { return read_clock(CLOCK_MONOTONIC); }
uint64_t process_realtime_ns(void) { return read_clock(CLOCK_REALTIME); }

void process_sleep_ns(uint64_t duration_ns) {
    struct timespec left = {.tv_sec = (time_t)(duration_ns / 1000000000u),
                            .tv_nsec = (long)(duration_ns % 1000000000u)};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
}

int process_random(void* bytes, uint32_t num_bytes) {
    return getrandom(bytes, num_bytes, 0) == (ssize_t)num_bytes ? 0 : EIO;
}

static _Atomic uint64_t fork_count;
static void count_fork(void) { atomic_fetch_add(&fork_count, 1); }
static void watch_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

uint64_t process_fork_count(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    return atomic_load_explicit(&fork_count, memory_order_relaxed);
}
