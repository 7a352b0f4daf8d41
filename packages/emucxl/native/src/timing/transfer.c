#include "timing/transfer.h"

#include <string.h>

#include "timing/clock.h"
#include "timing/path.h"

/* A transfer under way. Times are those of the model. */
typedef struct progress {
    uint64_t chain_ns;      /* when the piece before has passed every queue: the next one arrives then */
    uint64_t latency_ns[2]; /* by direction, of the paths at hand, as the batch began */
    uint64_t end_ns;        /* when everything so far has arrived */
    size_t unpaced_bytes;   /* queued since we last let the clock catch up */
    bool contended; /* the first piece of this turn waited for others, about as long as it takes itself */
    size_t pieces_alone;   /* queued in a turn where nobody else waits */
    const stop_flag* stop; /* or NULL */
    size_t num_moved;      /* transfers that are whole */
} progress;

/* Of what is not queued: moved between two looks at the flag, some milliseconds. Long enough that memmove moves
 * it as it would move all. */
#define UNQUEUED_PIECE_BYTES ((size_t)16 << 20)

/* Pieces that are queued before we wait for the first to be over. Each wait is a sleep, which costs some 10
 * us of the processor and ends some 10 us late. Alone on a queue, two pieces (40 to 80 us) keep the first of
 * these small. Where others wait too, a turn of four is over only after a late sleeper is awake again, so
 * that everyone keeps his turns. A copy engine's thread has no caller who waits for the first of them, but may
 * take the processor from one who computes meanwhile: alone, it sleeps an eighth as often.
 */
#define PIECES_ALONE 2
#define PIECES_ALONE_OF_ENGINE 16
#define PIECES_PER_TURN 4

static bool overlaps(const transfer* transfer) {
    uintptr_t to = (uintptr_t)transfer->destination, from = (uintptr_t)transfer->source;
    return to < from + transfer->size_bytes && from < to + transfer->size_bytes;
}

static void move(const transfer* transfer, size_t offset, size_t size_bytes) {
    if (transfer->destination == NULL) return;
    char* to = (char*)transfer->destination + offset;
    if (transfer->source != NULL) memmove(to, (const char*)transfer->source + offset, size_bytes);
    else memset(to, transfer->value, size_bytes);
}

/* Returns false where `stop` was set before all of it was moved. */
static bool move_whole(const transfer* transfer, const stop_flag* stop) {
    if (stop == NULL || overlaps(transfer)) {
        move(transfer, 0, transfer->size_bytes);
        return true;
    }
    for (size_t offset = 0; offset < transfer->size_bytes; offset += UNQUEUED_PIECE_BYTES) {
        const size_t left_bytes = transfer->size_bytes - offset;
        if (stop_is_set(stop)) return false;
        move(transfer, offset, left_bytes < UNQUEUED_PIECE_BYTES ? left_bytes : UNQUEUED_PIECE_BYTES);
    }
    return true;
}

static bool is_priced(const transfer* transfer) {
    return transfer->read_path != NULL || transfer->write_path != NULL;
}

static uint64_t later(uint64_t left_ns, uint64_t right_ns) { return left_ns > right_ns ? left_ns : right_ns; }

/* Queues a piece that arrives at chain_ns on both of the transfer's paths. */
static void reserve(const transfer* transfer, size_t size_bytes, progress* progress) {
    uint64_t arrival_ns = progress->chain_ns;
    path* const paths[2] = {[EMX_READ] = transfer->read_path, [EMX_WRITE] = transfer->write_path};
    bool waited = false;
    for (int direction = EMX_READ; direction <= EMX_WRITE; direction++) {
        if (paths[direction] == NULL) continue;
        lane_slot slot = path_reserve(paths[direction], (emx_direction)direction, size_bytes, arrival_ns);
        progress->chain_ns = later(progress->chain_ns, slot.release_ns);
        progress->end_ns = later(progress->end_ns, slot.release_ns + progress->latency_ns[direction]);
        waited |= 2 * (slot.start_ns - arrival_ns) > slot.release_ns - slot.start_ns;
    }
    if (progress->unpaced_bytes == 0) progress->contended = waited;
}

static size_t piece_of(const transfer* transfer) {
    size_t read = transfer->read_path != NULL ? path_piece_bytes(transfer->read_path) : SIZE_MAX;
    size_t write = transfer->write_path != NULL ? path_piece_bytes(transfer->write_path) : SIZE_MAX;
    return read < write ? read : write;
}

/* A piece at a time: queue it, move it while its modelled time runs, and wait for that to be over. The chain
 * of arrivals is the model's and not the machine's, so that waking late from one wait is made up for in the
 * next. Returns false where it was stopped. */
static bool run_in_pieces(const transfer* transfer, progress* progress) {
    size_t piece_bytes = piece_of(transfer);
    bool at_once = transfer->destination != NULL && transfer->source != NULL && overlaps(transfer);
    if (at_once) move(transfer, 0, transfer->size_bytes);
    for (size_t offset = 0; offset < transfer->size_bytes;) {
        size_t left_bytes = transfer->size_bytes - offset,
               size_bytes = left_bytes < piece_bytes ? left_bytes : piece_bytes;
        size_t turn_bytes = (progress->contended ? PIECES_PER_TURN : progress->pieces_alone) * piece_bytes;
        if (progress->unpaced_bytes + size_bytes > turn_bytes && progress->unpaced_bytes > 0) {
            wait_roughly_until(progress->chain_ns, progress->stop);
            progress->unpaced_bytes = 0;
        }
        if (stop_is_set(progress->stop)) return false;
        reserve(transfer, size_bytes, progress);
        progress->unpaced_bytes += size_bytes;
        if (!at_once) move(transfer, offset, size_bytes);
        offset += size_bytes;
    }
    return true;
}

static bool has_paths_of(const transfer* left, const transfer* right) {
    return left->read_path == right->read_path && left->write_path == right->write_path;
}

/* A batch runs at the same time: what it has queued itself is no load that its later transfers would meet, or many
 * small ones would take longer than one of their sum. */
static void look_at_paths(const transfer* transfers, size_t i, uint64_t start_ns, progress* progress) {
    const transfer* next = &transfers[i];
    if (i > 0 && has_paths_of(next, &transfers[i - 1])) return;
    progress->chain_ns = start_ns;
    path* const paths[2] = {[EMX_READ] = next->read_path, [EMX_WRITE] = next->write_path};
    for (int direction = EMX_READ; direction <= EMX_WRITE; direction++)
        progress->latency_ns[direction] =
            paths[direction] != NULL ? path_latency_ns(paths[direction], (emx_direction)direction, start_ns)
                                     : 0;
}

/* Without the wait at its end. */
static void run_on_real_clock(const transfer* transfers, size_t num_transfers, uint64_t start_ns,
                              progress* progress) {
    progress->chain_ns = progress->end_ns = start_ns;
    for (size_t i = 0; i < num_transfers; i++) {
        look_at_paths(transfers, i, start_ns, progress);
        const bool is_whole = is_priced(&transfers[i]) ? run_in_pieces(&transfers[i], progress)
                                                       : move_whole(&transfers[i], progress->stop);
        if (!is_whole) return;
        progress->num_moved++;
    }
}

uint64_t transfer_price(const transfer* transfers, size_t num_transfers, uint64_t start_ns) {
    progress progress = {.chain_ns = start_ns, .end_ns = start_ns};
    for (size_t i = 0; i < num_transfers; i++) {
        look_at_paths(transfers, i, start_ns, &progress);
        if (!is_priced(&transfers[i]) || transfers[i].size_bytes == 0) continue;
        progress.chain_ns = start_ns;
        reserve(&transfers[i], transfers[i].size_bytes, &progress);
    }
    return progress.end_ns;
}

size_t transfer_move(const transfer* transfers, size_t num_transfers, const stop_flag* stop) {
    for (size_t i = 0; i < num_transfers; i++)
        if (!move_whole(&transfers[i], stop)) return i;
    return num_transfers;
}

static bool any_priced(const transfer* transfers, size_t num_transfers) {
    for (size_t i = 0; i < num_transfers; i++)
        if (is_priced(&transfers[i])) return true;
    return false;
}

uint64_t transfer_start(model_clock* clock, const transfer* transfers, size_t num_transfers,
                        uint64_t entry_ticks, transfer_wait* wait) {
    uint64_t start_ns, end_ns;
    *wait = (transfer_wait){0};
    if (!any_priced(transfers, num_transfers)) {
        transfer_move(transfers, num_transfers, NULL);
        return 0;
    }
    if (clock->is_virtual) {
        start_ns = model_clock_now(clock);
        end_ns = transfer_price(transfers, num_transfers, start_ns);
        transfer_move(transfers, num_transfers, NULL);
        model_clock_reach(clock, end_ns);
    } else {
        progress progress = {.pieces_alone = PIECES_ALONE};
        start_ns = emx_now_ns();
        run_on_real_clock(transfers, num_transfers, start_ns, &progress);
        end_ns = progress.end_ns;
        *wait = (transfer_wait){entry_ticks, end_ns - start_ns, end_ns};
    }
    return end_ns - start_ns;
}

/* Returns early once `stop` is set. */
static void finish(const model_clock* clock, const transfer_wait* wait, const stop_flag* stop) {
    /* Of the caller's time, which passes after the delay. */
    const uint64_t early_ns = (uint64_t)clock->exit_overhead_ns;
    if (wait->duration_ns <= early_ns) return;
    wait_since(wait->entry_ticks, wait->duration_ns - early_ns, wait->end_ns - early_ns, stop);
}

void transfer_finish(const model_clock* clock, const transfer_wait* wait) { finish(clock, wait, NULL); }

uint64_t transfer_run(model_clock* clock, const transfer* transfers, size_t num_transfers) {
    transfer_wait wait;
    const uint64_t entry_ticks = transfer_entry(clock);
    const uint64_t duration_ns = transfer_start(clock, transfers, num_transfers, entry_ticks, &wait);
    transfer_finish(clock, &wait);
    return duration_ns;
}

uint64_t transfer_run_until(model_clock* clock, const transfer* transfers, size_t num_transfers,
                            const stop_flag* stop, size_t* num_moved) {
    const uint64_t entry_ticks = transfer_entry(clock);
    if (!any_priced(transfers, num_transfers)) {
        *num_moved = transfer_move(transfers, num_transfers, stop);
        return 0;
    }
    progress progress = {.stop = stop, .pieces_alone = PIECES_ALONE_OF_ENGINE};
    const uint64_t start_ns = emx_now_ns();
    run_on_real_clock(transfers, num_transfers, start_ns, &progress);
    *num_moved = progress.num_moved;
    const transfer_wait wait = {entry_ticks, progress.end_ns - start_ns, progress.end_ns};
    if (!stop_is_set(stop)) finish(clock, &wait, stop);
    return stop_is_set(stop) ? emx_now_ns() - start_ns : wait.duration_ns;
}
