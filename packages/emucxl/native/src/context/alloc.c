/* Allocations: made, freed, resized, moved between tiers, found, and poisoned. */
#include "context/internal.h"
#include "fail.h"

static emx_status require_output(const void* output) {
    return output != NULL ? EMX_OK
                          : fail(EMX_E_INVALID, "got NULL for where the pointer goes; expected its address");
}

/* Of memory that is about to be handed out, and zeroed. */
static emx_status check_guards(const tier* tier) {
    return tier_check_guards(tier, tier->pages.base, 0, true);
}

static emx_status alloc_in(tier* tier, size_t size_bytes, size_t alignment, void** pointer) {
    emx_status status = check_guards(tier);
    if (status != EMX_OK) return status;
    void* made = NULL;
    status = heap_alloc(tier->heap, size_bytes, alignment, &made);
    if (status != EMX_OK) return tier_failed(tier, status);
    *pointer = made;
    tier_show_sometimes(tier, size_bytes);
    return EMX_OK;
}

static emx_status free_in(tier* tier, void* pointer) {
    const emx_status status = heap_free(tier->heap, pointer);
    if (status != EMX_OK) return tier_failed(tier, status);
    tier_show_sometimes(tier, 0);
    return EMX_OK;
}

emx_status emx_alloc(emx_context* context, emx_tier number, size_t size_bytes, size_t alignment,
                     void** pointer) {
    tier* tier = NULL;
    emx_status status = require_output(pointer);
    if (status == EMX_OK) status = context_get_tier(context, number, &tier);
    return status == EMX_OK ? alloc_in(tier, size_bytes, alignment, pointer) : status;
}

emx_status emx_free(emx_context* context, void* pointer) {
    emx_status status = context_require(context);
    if (status != EMX_OK || pointer == NULL) return status;
    tier* tier = context_tier_of(context, pointer);
    if (tier == NULL)
        return fail(EMX_E_BAD_POINTER,
                    "got %p, which is in no tier of this context; expected what emx_alloc gave", pointer);
    status = context_check_unpinned(context, pointer);
    if (status != EMX_OK) return status;
    return free_in(tier, pointer);
}

/* The live block whose base is `pointer`, which no copy in flight uses. */
static emx_status find_movable(emx_context* context, const void* pointer, tier** tier, heap_block* block) {
    emx_status status = context_require(context);
    if (status == EMX_OK) status = context_find(context, pointer, tier, block);
    if (status == EMX_OK) status = context_check_unpinned(context, block->base);
    if (status == EMX_OK && block->base != pointer)
        status =
            fail(EMX_E_BAD_POINTER, "got %p, which is %zu bytes into an allocation; expected its base, %p",
                 pointer, (size_t)((const char*)pointer - (char*)block->base), block->base);
    return status;
}

/* Copies the first `size_bytes` of a block to a new block of `to`, `new_size` large, and frees the old one.
 */
static emx_status move(emx_context* context, tier* from, const heap_block* block, tier* to, size_t new_size,
                       void** moved) {
    const size_t size_bytes = block->size_bytes < new_size ? block->size_bytes : new_size;
    void* target = NULL;
    emx_status status = context_check_access(context, from, block->base, size_bytes, false);
    if (status == EMX_OK) status = alloc_in(to, new_size, 0, &target);
    if (status != EMX_OK) return status;
    tier_copy(context, to, target, from, block->base, size_bytes, transfer_entry(&context->clock));
    /* Fenced or poisoned meanwhile? */
    status = context_check_access(context, from, block->base, size_bytes, false);
    if (status == EMX_OK) status = check_guards(to);
    if (status == EMX_OK)
        status = free_in(from, block->base); /* fails if another thread freed it: a race of the program */
    if (status != EMX_OK) {
        (void)heap_free(to->heap, target);
        return status;
    }
    *moved = target;
    return EMX_OK;
}

emx_status emx_resize(emx_context* context, void* pointer, size_t size_bytes, void** moved) {
    tier* tier = NULL;
    heap_block block;
    emx_status status = require_output(moved);
    if (status == EMX_OK) status = find_movable(context, pointer, &tier, &block);
    if (status == EMX_OK) status = check_guards(tier);
    if (status != EMX_OK) return status;
    if (size_bytes == 0)
        return fail(EMX_E_INVALID,
                    "got a new size of 0 bytes; expected at least 1: emx_free ends an allocation");
    if (heap_resize_in_place(tier->heap, pointer, size_bytes)) {
        *moved = pointer;
        return EMX_OK;
    }
    return move(context, tier, &block, tier, size_bytes, moved);
}

emx_status emx_migrate(emx_context* context, void* pointer, emx_tier number, void** moved) {
    tier *from = NULL, *to = NULL;
    heap_block block;
    emx_status status = require_output(moved);
    if (status == EMX_OK) status = context_get_tier(context, number, &to);
    if (status == EMX_OK) status = find_movable(context, pointer, &from, &block);
    if (status != EMX_OK) return status;
    if (from == to) {
        *moved = pointer;
        return EMX_OK;
    }
    return move(context, from, &block, to, block.size_bytes, moved);
}

emx_status emx_query(const emx_context* context, const void* pointer, emx_allocation* allocation) {
    tier* tier = NULL;
    heap_block block;
    emx_status status = context_require(context);
    if (status == EMX_OK && allocation == NULL)
        status = fail(EMX_E_INVALID, "got NULL for where the answer goes");
    if (status == EMX_OK) status = context_find(context, pointer, &tier, &block);
    if (status != EMX_OK) return status;
    *allocation = (emx_allocation){
        .base = block.base,
        .size_bytes = block.size_bytes,
        .offset = (uint64_t)((const char*)pointer - (char*)block.base),
        .tier = tier->number,
    };
    return EMX_OK;
}

emx_status emx_poison(emx_context* context, emx_tier number, const void* address, size_t size_bytes) {
    tier* tier = NULL;
    emx_status status = context_get_tier(context, number, &tier);
    if (status != EMX_OK) return status;
    const size_t offset = (size_t)((uintptr_t)address - (uintptr_t)tier->pages.base);
    if (offset >= tier->pages.capacity_bytes || size_bytes > tier->pages.capacity_bytes - offset)
        return fail(EMX_E_OUT_OF_BOUNDS,
                    "got %zu bytes at %p; expected a range in tier '%s', %zu bytes at %p", size_bytes,
                    address, tier->name, tier->pages.capacity_bytes, (void*)tier->pages.base);
    if (size_bytes == 0) return EMX_OK;
    status = heap_poison(tier->heap, address, size_bytes);
    return status == EMX_OK ? EMX_OK : tier_failed(tier, status);
}
