/* Who a process is, and whether it still lives. */
#ifndef EMX_PRIM_PROCESS_H
#define EMX_PRIM_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

/* Names one process for good: its PID may be given to another one, but not with the same start time in the
 * same boot. */
typedef struct process_identity {
    uint64_t pid;
    uint64_t start_time; /* clock ticks since boot, counted in `time_namespace`: field 22 of /proc/PID/stat */
    uint64_t boot_id[2]; /* /proc/sys/kernel/random/boot_id: the same for all processes of one boot */
    uint64_t pid_namespace;  /* in which `pid` counts; UINT64_MAX: /proc shows another than this process's */
    uint64_t time_namespace; /* in which CLOCK_BOOTTIME counts */
} process_identity;

typedef enum process_state { PROCESS_ALIVE, PROCESS_DEAD, PROCESS_UNKNOWN } process_state;

uint64_t process_own_pid(void);
/* 0, or an errno. */
int process_identify_self(process_identity* identity);
/* UNKNOWN where `self` cannot look: another machine, an earlier boot, another PID namespace. In another time
 * namespace start times are shifted: there a PID that nobody has is DEAD, and one that somebody has is
 * UNKNOWN. A zombie is dead. */
process_state process_look(const process_identity* self, const process_identity* other);
/* Alike for PIDs of `self`'s machine and namespace; the start time is not compared. */
process_state process_look_at_pid(const process_identity* self, uint64_t pid);
bool process_shares_boot(const process_identity* self, const process_identity* other);
bool process_shares_clock(const process_identity* self, const process_identity* other);
bool process_shares_pids(const process_identity* self, const process_identity* other);
/* SIGKILL to exactly that process. 0, or an errno: ESRCH if it is gone, is another one by now, or cannot be
 * told from one. */
int process_kill(const process_identity* self, const process_identity* other);

/* Names this run of the machine; 0 if that cannot be told. */
uint64_t process_boot_hash(void);
/* How far this process's CLOCK_MONOTONIC is ahead of the machine's: the offset of its time namespace; 0 if it
 * can't be told. */
int64_t process_monotonic_offset_ns(void);
uint64_t process_boottime_ns(void);
uint64_t process_monotonic_ns(void);
uint64_t process_realtime_ns(void);
void process_sleep_ns(uint64_t duration_ns);
/* Fills with random bytes. 0, or an errno. */
int process_random(void* bytes, uint32_t num_bytes);
/* How many forks lie between this process and the one that first asked. */
uint64_t process_fork_count(void);

#endif
