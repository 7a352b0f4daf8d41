/* Priced accesses: checked against the allocation they touch, then moved and priced together. */
#include <stdlib.h>
#include <string.h>

#include "context/internal.h"
#include "fail.h"

/* One side of an access, checked. */
typedef struct side {
    tier* tier;
    char* address;
} side;

static emx_status out_of_bounds(const heap_block* block, const void* pointer, size_t offset,
                                size_t size_bytes) {
    const size_t before = (size_t)((const char*)pointer - (char*)block->base);
    return fail(EMX_E_OUT_OF_BOUNDS,
                "got %zu bytes at offset %zu of %p; expected a range that ends at or before offset %zu, "
                "the end of the allocation of %zu bytes at %p",
                size_bytes, offset, pointer, block->size_bytes - before, block->size_bytes, block->base);
}

static inline emx_status check_side(const emx_context* context, const void* pointer, size_t offset,
                                    size_t size_bytes, bool write, side* side) {
    heap_block block;
    emx_status status = context_find(context, pointer, &side->tier, &block);
    if (status != EMX_OK) return status;
    const size_t room = block.size_bytes - (size_t)((const char*)pointer - (char*)block.base);
    if (offset > room || size_bytes > room - offset)
        return out_of_bounds(&block, pointer, offset, size_bytes);
    side->address = (char*)pointer + offset;
    return context_check_access(context, side->tier, side->address, size_bytes, write);
}

static emx_status check_buffer(const void* buffer, size_t size_bytes) {
    if (buffer != NULL || size_bytes == 0) return EMX_OK;
    return fail(EMX_E_INVALID, "got NULL for the buffer of %zu bytes", size_bytes);
}

/* Moves without a price, as far as there is memory on both sides. `source` NULL fills with `value`. */
static void move_unpriced(void* destination, const void* source, int value, size_t size_bytes) {
    if (destination == NULL) return;
    if (source != NULL) {
        memmove(destination, source, size_bytes);
    } else {
        memset(destination, value, size_bytes);
    }
}

/* A side's memory: NULL where there is none behind the addresses. Such memory reads as zero and forgets what
 * it is given. */
static void* memory_of(const tier* tier, void* address) { return tier->touchable ? address : NULL; }

static transfer read_transfer(const side* side, void* buffer, size_t size_bytes) {
    return (transfer){buffer, memory_of(side->tier, side->address), 0, size_bytes, side->tier->path, NULL};
}

static transfer write_transfer(const side* side, const void* buffer, int value, size_t size_bytes) {
    return (transfer){
        memory_of(side->tier, side->address), buffer, value, size_bytes, NULL, side->tier->path};
}

static uint64_t entry_of(const emx_context* context) {
    return context != NULL ? transfer_entry(&context->clock) : 0;
}

static uint64_t run(emx_context* context, const transfer* moved, uint64_t entry_ticks, transfer_wait* wait) {
    if (moved->read_path != NULL || moved->write_path != NULL)
        return transfer_start(&context->clock, moved, 1, entry_ticks, wait);
    move_unpriced(moved->destination, moved->source, moved->value, moved->size_bytes);
    wait->duration_ns = 0;
    return 0;
}

/* A host may be fenced while it moves bytes, and what it read then is not what it asked for: the pool is
 * asked again. */
static emx_status settle(const emx_context* context, const tier* tier, const char* address, size_t size_bytes,
                         bool write) {
    return tier->region == NULL ? EMX_OK : context_check_access(context, tier, address, size_bytes, write);
}

emx_status emx_read(emx_context* context, const void* pointer, size_t offset, void* buffer,
                    size_t size_bytes) {
    side side;
    transfer_wait wait;
    const uint64_t entry_ticks = entry_of(context);
    emx_status status = context_require(context);
    if (status == EMX_OK) status = check_side(context, pointer, offset, size_bytes, false, &side);
    if (status == EMX_OK) status = check_buffer(buffer, size_bytes);
    if (status != EMX_OK || size_bytes == 0) return status;
    const transfer moved = read_transfer(&side, buffer, size_bytes);
    tier_count(side.tier, EMX_READ, size_bytes, run(context, &moved, entry_ticks, &wait));
    transfer_finish(&context->clock, &wait);
    return settle(context, side.tier, side.address, size_bytes, false);
}

static emx_status write_or_fill(emx_context* context, void* pointer, size_t offset, const void* buffer,
                                int value, size_t size_bytes, uint64_t entry_ticks) {
    side side;
    transfer_wait wait;
    const emx_status status = check_side(context, pointer, offset, size_bytes, true, &side);
    if (status != EMX_OK || size_bytes == 0) return status;
    const transfer moved = write_transfer(&side, buffer, value, size_bytes);
    tier_count(side.tier, EMX_WRITE, size_bytes, run(context, &moved, entry_ticks, &wait));
    transfer_finish(&context->clock, &wait);
    return settle(context, side.tier, side.address, size_bytes, true);
}

emx_status emx_write(emx_context* context, void* pointer, size_t offset, const void* buffer,
                     size_t size_bytes) {
    const uint64_t entry_ticks = entry_of(context);
    emx_status status = context_require(context);
    if (status == EMX_OK) status = check_buffer(buffer, size_bytes);
    return status == EMX_OK ? write_or_fill(context, pointer, offset, buffer, 0, size_bytes, entry_ticks)
                            : status;
}

emx_status emx_memset(emx_context* context, void* pointer, size_t offset, int value, size_t size_bytes) {
    const uint64_t entry_ticks = entry_of(context);
    const emx_status status = context_require(context);
    return status == EMX_OK ? write_or_fill(context, pointer, offset, NULL, value, size_bytes, entry_ticks)
                            : status;
}

void tier_copy(emx_context* context, tier* to, void* destination, tier* from, const void* source,
               size_t size_bytes, uint64_t entry_ticks) {
    transfer_wait wait;
    const transfer moved = {
        .destination = memory_of(to, destination),
        .source = from->touchable ? source : NULL,
        .size_bytes = size_bytes,
        .read_path = from->path,
        .write_path = to->path,
    };
    const uint64_t delayed_ns = run(context, &moved, entry_ticks, &wait);
    tier_count(from, EMX_READ, size_bytes, from->path != NULL ? delayed_ns : 0);
    tier_count(to, EMX_WRITE, size_bytes, to->path != NULL ? delayed_ns : 0);
    transfer_finish(&context->clock, &wait);
}

emx_status emx_copy(emx_context* context, void* destination, size_t destination_offset, const void* source,
                    size_t source_offset, size_t size_bytes) {
    side to, from;
    const uint64_t entry_ticks = entry_of(context);
    emx_status status = context_require(context);
    if (status == EMX_OK)
        status = check_side(context, destination, destination_offset, size_bytes, true, &to);
    if (status == EMX_OK) status = check_side(context, source, source_offset, size_bytes, false, &from);
    if (status != EMX_OK || size_bytes == 0) return status;
    tier_copy(context, to.tier, to.address, from.tier, from.address, size_bytes, entry_ticks);
    status = settle(context, to.tier, to.address, size_bytes, true);
    return status == EMX_OK ? settle(context, from.tier, from.address, size_bytes, false) : status;
}

/* ---- batches ------------------------------------------------------------------------------------------- */

enum { SMALL_BATCH = 16 }; /* accesses that need no memory of their own */

typedef struct batch {
    transfer* transfers;
    side* sides;
} batch;

static emx_status check_batch(const emx_context* context, const emx_access* accesses, size_t num_accesses,
                              bool write, batch* batch) {
    for (size_t i = 0; i < num_accesses; i++) {
        const emx_access* access = &accesses[i];
        emx_status status =
            check_side(context, access->pointer, access->offset, access->size_bytes, write, &batch->sides[i]);
        if (status == EMX_OK) status = check_buffer(access->buffer, access->size_bytes);
        if (status != EMX_OK) return status;
        batch->transfers[i] = write ? write_transfer(&batch->sides[i], access->buffer, 0, access->size_bytes)
                                    : read_transfer(&batch->sides[i], access->buffer, access->size_bytes);
    }
    return EMX_OK;
}

static uint64_t run_batch(emx_context* context, const batch* batch, size_t num_accesses, uint64_t entry_ticks,
                          transfer_wait* wait) {
    bool priced = false;
    for (size_t i = 0; i < num_accesses; i++)
        priced |= batch->transfers[i].read_path != NULL || batch->transfers[i].write_path != NULL;
    if (priced) return transfer_start(&context->clock, batch->transfers, num_accesses, entry_ticks, wait);
    for (size_t i = 0; i < num_accesses; i++) run(context, &batch->transfers[i], 0, wait);
    return 0;
}

/* The batch took `delayed_ns` once in each of the priced tiers it touched. */
static void count_batch(const batch* batch, size_t num_accesses, emx_direction direction,
                        uint64_t delayed_ns) {
    uint32_t seen = 0;
    for (size_t i = 0; i < num_accesses; i++) {
        tier* tier = batch->sides[i].tier;
        const uint32_t bit = UINT32_C(1) << tier->number;
        const bool first = (seen & bit) == 0 && tier->path != NULL;
        seen |= bit;
        if (batch->transfers[i].size_bytes > 0)
            tier_count(tier, direction, batch->transfers[i].size_bytes, first ? delayed_ns : 0);
    }
}

static emx_status settle_batch(const emx_context* context, const batch* batch, size_t num_accesses,
                               bool write) {
    emx_status status = EMX_OK;
    for (size_t i = 0; i < num_accesses && status == EMX_OK; i++)
        status = settle(context, batch->sides[i].tier, batch->sides[i].address,
                        batch->transfers[i].size_bytes, write);
    return status;
}

static emx_status access_batch(emx_context* context, const emx_access* accesses, size_t num_accesses,
                               bool write) {
    transfer few_transfers[SMALL_BATCH];
    side few_sides[SMALL_BATCH];
    batch batch = {few_transfers, few_sides};
    transfer_wait wait;
    const uint64_t entry_ticks = entry_of(context);
    emx_status status = context_require(context);
    if (status != EMX_OK || num_accesses == 0) return status;
    if (accesses == NULL) return fail(EMX_E_INVALID, "got NULL for a batch of %zu accesses", num_accesses);
    void* memory = NULL;
    if (num_accesses > SMALL_BATCH) {
        memory =
            num_accesses <= SIZE_MAX / 128 ? malloc(num_accesses * (sizeof(transfer) + sizeof(side))) : NULL;
        if (memory == NULL)
            return fail(EMX_E_NO_MEMORY, "no memory for a batch of %zu accesses; make it shorter",
                        num_accesses);
        batch.transfers = memory;
        batch.sides = (side*)(batch.transfers + num_accesses);
    }
    status = check_batch(context, accesses, num_accesses, write, &batch);
    if (status == EMX_OK) {
        count_batch(&batch, num_accesses, write ? EMX_WRITE : EMX_READ,
                    run_batch(context, &batch, num_accesses, entry_ticks, &wait));
        transfer_finish(&context->clock, &wait);
        status = settle_batch(context, &batch, num_accesses, write);
    }
    free(memory);
    return status;
}

emx_status emx_read_batch(emx_context* context, const emx_access* accesses, size_t num_accesses) {
    return access_batch(context, accesses, num_accesses, false);
}

emx_status emx_write_batch(emx_context* context, const emx_access* accesses, size_t num_accesses) {
    return access_batch(context, accesses, num_accesses, true);
}
