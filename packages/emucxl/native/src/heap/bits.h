/* Bitmaps over lazily mapped memory: flat ones, and ones with summaries that answer "the last set bit before
 * this one" in a few steps however far away it is.
 *
 * Thread safety: one writer at a time (the heap's lock); readers need no lock. Words are atomics so that a
 * reader sees either value of a bit that changes meanwhile; what it concludes holds for bits that don't.
 */
#ifndef EMX_HEAP_BITS_H
#define EMX_HEAP_BITS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef _Atomic uint64_t bits_word;

#define BITS_NONE SIZE_MAX

static inline uint64_t bits_load(const bits_word* word) {
    return atomic_load_explicit(word, memory_order_relaxed);
}
static inline void bits_store(bits_word* word, uint64_t value) {
    atomic_store_explicit(word, value, memory_order_relaxed);
}
static inline unsigned bits_highest(uint64_t word) { return 63u - (unsigned)__builtin_clzll(word); }
static inline unsigned bits_lowest(uint64_t word) { return (unsigned)__builtin_ctzll(word); }
static inline uint64_t bits_up_to(unsigned bit) { return ~0ull >> (63 - bit); } /* bits 0..bit */

/* ---- flat ---------------------------------------------------------------------------------------------- */

static inline size_t bits_words(size_t num_bits) { return (num_bits + 63) / 64; }
static inline bool bits_test(const bits_word* bits, size_t index) {
    return bits_load(&bits[index / 64]) >> index % 64 & 1;
}
static inline void bits_put(bits_word* bits, size_t index, bool value) {
    const uint64_t old = bits_load(&bits[index / 64]), bit = 1ull << index % 64;
    bits_store(&bits[index / 64], value ? old | bit : old & ~bit);
}
void bits_fill(bits_word* bits, size_t from, size_t to, bool value); /* [from, to) */
/* The first bit of [from, to) that has `value`; `to` if none does. */
size_t bits_find(const bits_word* bits, size_t from, size_t to, bool value);

/* ---- with summaries ------------------------------------------------------------------------------------ */

enum { BITMAP_MAX_LEVELS = 7 };

/* Bit i of level n + 1 is set when word i of level n is not 0. */
typedef struct bitmap {
    bits_word* levels[BITMAP_MAX_LEVELS];
    size_t num_words[BITMAP_MAX_LEVELS];
    unsigned num_levels;
} bitmap;

size_t bitmap_bytes(size_t num_bits);
void bitmap_place(bitmap* map, size_t num_bits, void* zeroed); /* on bitmap_bytes() zero bytes */
void bitmap_set(bitmap* map, size_t index);
void bitmap_clear(bitmap* map, size_t index);
size_t bitmap_previous_far(const bitmap* map, size_t index);
size_t bitmap_next(const bitmap* map, size_t index); /* the first set bit >= index, or BITS_NONE */
bool bitmap_is_sound(const bitmap* map);             /* the summaries say what the bits say */

/* The last set bit <= index if it is in the same word or the one before, or BITS_NONE. */
static inline size_t bitmap_previous_near(const bitmap* map, size_t index) {
    const bits_word* words = map->levels[0];
    size_t at = index / 64;
    uint64_t word = bits_load(&words[at]) & bits_up_to(index % 64);
    if (__builtin_expect(word == 0, 0)) {
        if (at == 0) return BITS_NONE;
        word = bits_load(&words[--at]);
        if (word == 0) return BITS_NONE;
    }
    return at * 64 + bits_highest(word);
}

/* The last set bit <= index, or BITS_NONE. Most are in the same word. */
static inline size_t bitmap_previous(const bitmap* map, size_t index) {
    const uint64_t word = bits_load(&map->levels[0][index / 64]) & bits_up_to(index % 64);
    return __builtin_expect(word != 0, 1) ? index / 64 * 64 + bits_highest(word)
                                          : bitmap_previous_far(map, index);
}

#endif
