/* Pins: a hash table with open addressing, keyed by a block's base. A few entries while copies are in flight,
 * else empty. */
#include <stdlib.h>

#include "context/internal.h"
#include "fail.h"

static uint32_t slot_of(const pin_table* table, const void* base) {
    const uint64_t mixed = ((uint64_t)(uintptr_t)base >> 4) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(mixed >> 32) & (table->num_slots - 1);
}

/* The slot that holds `base`, or the free one where it would go. There always is a free one. */
static pin* find(const pin_table* table, const void* base) {
    uint32_t i = slot_of(table, base);
    while (table->slots[i].base != NULL && table->slots[i].base != base) i = (i + 1) & (table->num_slots - 1);
    return &table->slots[i];
}

/* Keeps at least half of the slots free. */
static bool grow(pin_table* table) {
    pin_table larger = {.num_slots = table->num_slots == 0 ? 64 : 2 * table->num_slots};
    larger.slots = calloc(larger.num_slots, sizeof *larger.slots);
    if (larger.slots == NULL) return false;
    for (uint32_t i = 0; i < table->num_slots; i++)
        if (table->slots[i].base != NULL) *find(&larger, table->slots[i].base) = table->slots[i];
    free(table->slots);
    table->slots = larger.slots;
    table->num_slots = larger.num_slots;
    return true;
}

/* Empties a slot and moves up those behind it that would no longer be found. */
static void erase(pin_table* table, pin* slot) {
    const uint32_t mask = table->num_slots - 1;
    uint32_t hole = (uint32_t)(slot - table->slots);
    for (uint32_t i = (hole + 1) & mask; table->slots[i].base != NULL; i = (i + 1) & mask) {
        const uint32_t home = slot_of(table, table->slots[i].base);
        if (((i - home) & mask) < ((i - hole) & mask)) continue; /* its home lies behind the hole */
        table->slots[hole] = table->slots[i];
        hole = i;
    }
    table->slots[hole] = (pin){0};
}

void pin_table_init(pin_table* table) {
    *table = (pin_table){0};
    pthread_mutex_init(&table->lock, NULL);
}

void pin_table_destroy(pin_table* table) {
    pthread_mutex_destroy(&table->lock);
    free(table->slots);
    table->slots = NULL;
}

void pin_table_forget(pin_table* table) {
    for (uint32_t i = 0; i < table->num_slots; i++) table->slots[i] = (pin){0};
    atomic_store(&table->num_pinned, 0);
}

emx_status context_pin(emx_context* context, const void* base) {
    pin_table* table = &context->pins;
    pthread_mutex_lock(&table->lock);
    const uint32_t num_pinned = atomic_load(&table->num_pinned);
    const bool has_room = 2 * (num_pinned + 1) <= table->num_slots || grow(table);
    if (has_room) {
        pin* slot = find(table, base);
        if (slot->base == NULL) atomic_store(&table->num_pinned, num_pinned + 1);
        slot->base = base;
        slot->count++;
    }
    pthread_mutex_unlock(&table->lock);
    return has_room ? EMX_OK : fail(EMX_E_NO_MEMORY, "no memory to note %u blocks in flight", num_pinned + 1);
}

void context_unpin(emx_context* context, const void* base) {
    pin_table* table = &context->pins;
    pthread_mutex_lock(&table->lock);
    pin* slot = table->num_slots > 0 ? find(table, base) : NULL;
    if (slot != NULL && slot->base != NULL && --slot->count == 0) {
        erase(table, slot);
        atomic_fetch_sub(&table->num_pinned, 1);
    }
    pthread_mutex_unlock(&table->lock);
}

emx_status context_check_unpinned(emx_context* context, const void* base) {
    pin_table* table = &context->pins;
    if (atomic_load_explicit(&table->num_pinned, memory_order_relaxed) == 0) return EMX_OK;
    pthread_mutex_lock(&table->lock);
    const pin* slot = find(table, base);
    const uint32_t count = slot->base != NULL ? slot->count : 0;
    pthread_mutex_unlock(&table->lock);
    if (count == 0) return EMX_OK;
    return fail(EMX_E_BUSY, "%p is used by %u copies in flight; wait for their completions first", base,
                count);
}
