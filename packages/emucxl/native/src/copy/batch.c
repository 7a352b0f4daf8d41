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

/* Finds out where `pointer` lies, and pins it there. *memory is what to move to or from: NULL where nothing
 * is behind.
 */
static emx_status take_side(emx_context* context, const char* what, void* pointer, size_t size_bytes,
                            bool write, copy_side* side, void** memory) {
    *side = (copy_side){NULL, NULL};
    *memory = pointer;
    if (pointer == NULL) return fail(EMX_E_INVALID, "got NULL for the %s of %zu bytes", what, size_bytes);
    if (context_tier_of(context, pointer) == NULL) return EMX_OK;
    heap_block block;
    tier* found;
    emx_status status = context_find(context, pointer, &found, &block);
    if (status != EMX_OK) return status;
    if (size_bytes > block.size_bytes - (size_t)((char*)pointer - (char*)block.base))
        return out_of_bounds(what, pointer, size_bytes, &block);
    status = context_check_access(context, found, pointer, size_bytes, write);
    if (status == EMX_OK) status = context_pin(context, block.base);
    if (status != EMX_OK) return status;
    *side = (copy_side){found, block.base};
    if (!found->touchable) *memory = NULL;
    return EMX_OK;
}

static emx_status take_copy(emx_context* context, const emx_copy_request* request, copy_side sides[2],
                            transfer* moved) {
    void *to = NULL, *from = NULL;
    emx_status status =
        take_side(context, "destination", request->destination, request->size_bytes, true, &sides[0], &to);
    if (status == EMX_OK)
        status = take_side(context, "source", (void*)request->source, request->size_bytes, false, &sides[1],
                           &from);
    *moved = (transfer){
        .destination = to,
        .source = from,
        .size_bytes = request->size_bytes,
        .read_path = sides[1].tier != NULL ? sides[1].tier->path : NULL,
        .write_path = sides[0].tier != NULL ? sides[0].tier->path : NULL,
    };
    return status;
}

emx_status copy_batch_create(emx_context* context, const emx_copy_request* requests, size_t num_requests,
                             copy_batch* batch) {
    const size_t bytes_each = sizeof(transfer) + 2 * sizeof(copy_side) + sizeof(emx_copy_request);
    char* memory = num_requests <= SIZE_MAX / bytes_each ? calloc(num_requests, bytes_each) : NULL;
    if (memory == NULL)
        return fail(EMX_E_NO_MEMORY, "no memory for a batch of %zu copies; make it shorter", num_requests);
    transfer* transfers = (transfer*)memory;
    copy_side* sides = (copy_side*)(transfers + num_requests);
    emx_copy_request* own = (emx_copy_request*)(sides + 2 * num_requests);
    *batch = (copy_batch){0, transfers, sides, own};
    for (size_t i = 0; i < num_requests; i++) {
        if (requests[i].size_bytes == 0) continue;
        size_t at = batch->num_copies++;
        own[at] = requests[i];
        emx_status status = take_copy(context, &requests[i], &sides[2 * at], &transfers[at]);
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

static emx_status check_again(const emx_context* context, const copy_batch* batch, size_t i) {
    const emx_copy_request* request = &batch->requests[i];
    const copy_side *to = &batch->sides[2 * i], *from = to + 1;
    emx_status status = EMX_OK;
    if (to->tier != NULL)
        status = context_check_access(context, to->tier, request->destination, request->size_bytes, true);
    if (status == EMX_OK && from->tier != NULL)
        status = context_check_access(context, from->tier, request->source, request->size_bytes, false);
    return status;
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

emx_status copy_batch_run(emx_context* context, copy_batch* batch, bool wait, uint64_t priced_ns) {
    emx_status status = EMX_OK;
    size_t num_good = 0;
    while (num_good < batch->num_copies && (status = check_again(context, batch, num_good)) == EMX_OK)
        num_good++;
    uint64_t arrival_ns;
    if (wait) priced_ns = transfer_run(&context->clock, batch->transfers, num_good, &arrival_ns);
    else transfer_move(batch->transfers, num_good);
    count(batch, num_good, priced_ns);
    return status;
}
