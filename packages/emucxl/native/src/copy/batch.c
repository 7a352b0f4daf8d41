#include "copy/batch.h"

#include <stdlib.h>
#include <string.h>

#include "fail.h"

static emx_status out_of_bounds(const char* what, const void* pointer, size_t size_bytes,
                                const heap_block* block) {
    return fail(
        EMX_E_OUT_OF_BOUNDS,
        "got a %s of %zu bytes at %p; expected a range that ends with the allocation of %zu bytes at %p",
        what, size_bytes, pointer, block->size_bytes, block->base);
}

/* The block that a side of the pattern before lies in, which the batch has pinned. */
typedef struct found_block {
    tier* tier; /* NULL: none */
    heap_block block;
} found_block;

static bool lies_in(const void* pointer, const found_block* found) {
    return found->tier != NULL && (uintptr_t)pointer - (uintptr_t)found->block.base < found->block.size_bytes;
}

/* Finds out where the range from `pointer` on lies, and pins it there. *memory is what to move to or from: NULL
 * where nothing is behind. `last` is the block of this side before, and becomes this one's.
 */
static emx_status take_side(emx_context* context, const char* what, void* pointer, size_t size_bytes,
                            found_block* last, copy_side* side, void** memory) {
    *side = (copy_side){NULL, NULL};
    *memory = pointer;
    if (pointer == NULL) return fail(EMX_E_INVALID, "got NULL for the %s of %zu bytes", what, size_bytes);
    const bool is_pinned = lies_in(pointer, last);
    if (!is_pinned) {
        last->tier = NULL;
        if (context_tier_of(context, pointer) == NULL) return EMX_OK;
        emx_status status = context_find(context, pointer, &last->tier, &last->block);
        if (status != EMX_OK) return status;
    }
    const heap_block* block = &last->block;
    if (size_bytes > block->size_bytes - (size_t)((char*)pointer - (char*)block->base))
        return out_of_bounds(what, pointer, size_bytes, block);
    if (!is_pinned) {
        emx_status status = context_pin(context, block->base);
        if (status != EMX_OK) return status;
        side->base = block->base;
    }
    side->tier = last->tier;
    if (!side->tier->touchable) *memory = NULL;
    return EMX_OK;
}

/* Bytes from the first piece's beginning to the last one's end. SIZE_MAX where there are too many to count. */
static size_t span_bytes(const emx_copy_pattern* pattern, size_t stride_bytes) {
    size_t before = pattern->num_pieces - 1;
    if (before > 0 && stride_bytes > (SIZE_MAX - pattern->size_bytes) / before) return SIZE_MAX;
    return before * stride_bytes + pattern->size_bytes;
}

static emx_status check_stride(const emx_copy_pattern* pattern) {
    const size_t stride_bytes = pattern->destination_stride_bytes;
    if (pattern->num_pieces < 2 || stride_bytes >= pattern->size_bytes) return EMX_OK;
    return fail(EMX_E_INVALID,
                "got a destination's stride of %zu bytes for %zu pieces of %zu bytes; expected at least a "
                "piece's size",
                stride_bytes, pattern->num_pieces, pattern->size_bytes);
}

static emx_status check_access(const emx_context* context, const copy_side sides[2],
                               const emx_copy_request* piece) {
    emx_status status = EMX_OK;
    if (sides[0].tier != NULL)
        status = context_check_access(context, sides[0].tier, piece->destination, piece->size_bytes, true);
    if (status == EMX_OK && sides[1].tier != NULL)
        status = context_check_access(context, sides[1].tier, piece->source, piece->size_bytes, false);
    return status;
}

/* The pieces of one pattern, at the end of the batch. */
static emx_status take_pattern(emx_context* context, const emx_copy_pattern* pattern, found_block last[2],
                               copy_batch* batch) {
    emx_status status = check_stride(pattern);
    if (status != EMX_OK) return status;
    const size_t first = batch->num_copies;
    emx_copy_request* own = (emx_copy_request*)batch->requests + first;
    copy_side* sides = batch->sides + 2 * first;
    void *to = NULL, *from = NULL;
    batch->num_copies +=
        pattern->num_pieces; /* what has been pinned is given back, whatever fails from here on */
    status = take_side(context, "destination", pattern->destination,
                       span_bytes(pattern, pattern->destination_stride_bytes), &last[0], &sides[0], &to);
    if (status == EMX_OK)
        status = take_side(context, "source", (void*)pattern->source,
                           span_bytes(pattern, pattern->source_stride_bytes), &last[1], &sides[1], &from);
    for (size_t i = 0; i < pattern->num_pieces && status == EMX_OK; i++) {
        const size_t at = i * pattern->destination_stride_bytes, source_at = i * pattern->source_stride_bytes;
        if (i > 0) {
            sides[2 * i] = (copy_side){sides[0].tier, NULL};
            sides[2 * i + 1] = (copy_side){sides[1].tier, NULL};
        }
        own[i] = (emx_copy_request){(char*)pattern->destination + at,
                                    (const char*)pattern->source + source_at, pattern->size_bytes};
        batch->transfers[first + i] = (transfer){
            .destination = to != NULL ? (char*)to + at : NULL,
            .source = from != NULL ? (char*)from + source_at : NULL,
            .size_bytes = pattern->size_bytes,
            .read_path = sides[1].tier != NULL ? sides[1].tier->path : NULL,
            .write_path = sides[0].tier != NULL ? sides[0].tier->path : NULL,
        };
        status = check_access(context, sides, &own[i]);
    }
    return status;
}

/* SIZE_MAX where there are too many to count. */
static size_t count_pieces(const emx_copy_pattern* patterns, size_t num_patterns) {
    size_t count = 0;
    for (size_t i = 0; i < num_patterns; i++) {
        if (patterns[i].size_bytes == 0) continue;
        if (patterns[i].num_pieces > SIZE_MAX - count) return SIZE_MAX;
        count += patterns[i].num_pieces;
    }
    return count;
}

emx_status copy_batch_create(emx_context* context, const emx_copy_pattern* patterns, size_t num_patterns,
                             copy_batch* batch) {
    const size_t bytes_each = sizeof(transfer) + 2 * sizeof(copy_side) + sizeof(emx_copy_request);
    const size_t num_copies = count_pieces(patterns, num_patterns);
    char* memory = num_copies <= SIZE_MAX / bytes_each ? calloc(num_copies, bytes_each) : NULL;
    if (memory == NULL && num_copies > 0)
        return fail(EMX_E_NO_MEMORY, "no memory for a batch of %zu copies; make it shorter", num_copies);
    transfer* transfers = (transfer*)memory;
    copy_side* sides = (copy_side*)(transfers + num_copies);
    *batch = (copy_batch){0, transfers, sides, (emx_copy_request*)(sides + 2 * num_copies)};
    found_block last[2] = {{.tier = NULL}, {.tier = NULL}};
    for (size_t i = 0; i < num_patterns; i++) {
        if (patterns[i].size_bytes == 0 || patterns[i].num_pieces == 0) continue;
        emx_status status = take_pattern(context, &patterns[i], last, batch);
        if (status == EMX_OK) continue;
        copy_batch_destroy(context, batch);
        return status;
    }
    return EMX_OK;
}

void copy_batch_destroy(emx_context* context, copy_batch* batch) {
    for (size_t i = 0; i < 2 * batch->num_copies; i++)
        if (batch->sides[i].base != NULL) context_unpin(context, batch->sides[i].base);
    free(batch->transfers);
    *batch = (copy_batch){0, NULL, NULL, NULL};
}

/* Counts the bytes in both tiers, and the batch's duration once in each that is modelled. */
static void count(const copy_batch* batch, size_t num_copies, uint64_t delayed_ns) {
    uint32_t seen = 0;
    for (size_t i = 0; i < 2 * num_copies; i++) {
        tier* touched = batch->sides[i].tier;
        size_t size_bytes = batch->transfers[i / 2].size_bytes;
        if (touched == NULL) continue;
        uint32_t bit = UINT32_C(1) << touched->number;
        bool first = (seen & bit) == 0 && touched->path != NULL;
        seen |= bit;
        tier_count(touched, i % 2 == 0 ? EMX_WRITE : EMX_READ, size_bytes, first ? delayed_ns : 0);
    }
}

emx_status copy_batch_run(emx_context* context, copy_batch* batch, bool wait, uint64_t priced_ns,
                          const stop_flag* stop) {
    emx_status status = EMX_OK;
    size_t num_good = 0;
    while (num_good < batch->num_copies && (status = check_access(context, &batch->sides[2 * num_good],
                                                                  &batch->requests[num_good])) == EMX_OK)
        num_good++;
    size_t num_moved;
    if (wait) priced_ns = transfer_run_until(&context->clock, batch->transfers, num_good, stop, &num_moved);
    else num_moved = transfer_move(batch->transfers, num_good, stop);
    count(batch, num_moved, priced_ns);
    return status;
}
