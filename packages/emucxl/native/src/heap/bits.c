#include "heap/bits.h"

void bits_fill(bits_word* bits, size_t from, size_t to, bool value) {
    while (from < to) {
        const size_t word = from / 64, end = (word + 1) * 64 < to ? (word + 1) * 64 : to;
        const uint64_t mask = bits_up_to((unsigned)(end - from) - 1) << from % 64,
                       old = bits_load(&bits[word]);
        bits_store(&bits[word], value ? old | mask : old & ~mask);
        from = end;
    }
}

size_t bits_find(const bits_word* bits, size_t from, size_t to, bool value) {
    while (from < to) {
        const uint64_t word = value ? bits_load(&bits[from / 64]) : ~bits_load(&bits[from / 64]);
        const uint64_t rest = word >> from % 64;
        if (rest) return from + bits_lowest(rest) < to ? from + bits_lowest(rest) : to;
        from = (from / 64 + 1) * 64;
    }
    return to;
}

size_t bitmap_bytes(size_t num_bits) {
    size_t words = 0;
    do words += num_bits = bits_words(num_bits);
    while (num_bits > 1);
    return words * sizeof(bits_word);
}

void bitmap_place(bitmap* map, size_t num_bits, void* zeroed) {
    bits_word* at = zeroed;
    map->num_levels = 0;
    do {
        num_bits = bits_words(num_bits);
        map->levels[map->num_levels] = at;
        map->num_words[map->num_levels++] = num_bits;
        at += num_bits;
    } while (num_bits > 1);
}

void bitmap_set(bitmap* map, size_t index) {
    for (unsigned level = 0; level < map->num_levels; ++level, index /= 64) {
        bits_word* word = &map->levels[level][index / 64];
        const uint64_t old = bits_load(word);
        bits_store(word, old | 1ull << index % 64);
        if (old) return; /* the levels above know of this word */
    }
}

void bitmap_clear(bitmap* map, size_t index) {
    for (unsigned level = 0; level < map->num_levels; ++level, index /= 64) {
        bits_word* word = &map->levels[level][index / 64];
        const uint64_t left = bits_load(word) & ~(1ull << index % 64);
        bits_store(word, left);
        if (left) return;
    }
}

/* From bit `index` of `level` down to the last (or first) bit below it. */
static size_t descend(const bitmap* map, unsigned level, size_t index, bool last) {
    while (level-- > 0) {
        const uint64_t word = bits_load(&map->levels[level][index]);
        if (!word) return BITS_NONE; /* cleared meanwhile */
        index = index * 64 + (last ? bits_highest(word) : bits_lowest(word));
    }
    return index;
}

size_t bitmap_previous_far(const bitmap* map, size_t index) {
    for (unsigned level = 0; level < map->num_levels; ++level) {
        const uint64_t word = bits_load(&map->levels[level][index / 64]) & bits_up_to(index % 64);
        if (word) return descend(map, level, index / 64 * 64 + bits_highest(word), true);
        if (index < 64) return BITS_NONE;
        index = index / 64 - 1;
    }
    return BITS_NONE;
}

size_t bitmap_next(const bitmap* map, size_t index) {
    for (unsigned level = 0; level < map->num_levels; ++level) {
        const uint64_t rest = bits_load(&map->levels[level][index / 64]) >> index % 64;
        if (rest) return descend(map, level, index + bits_lowest(rest), false);
        index = index / 64 + 1;
        if (index == map->num_words[level]) return BITS_NONE;
    }
    return BITS_NONE;
}

bool bitmap_is_sound(const bitmap* map) {
    for (unsigned level = 0; level + 1 < map->num_levels; ++level)
        for (size_t word = 0; word < map->num_words[level]; ++word)
            if ((bits_load(&map->levels[level][word]) != 0) != bits_test(map->levels[level + 1], word))
                return false;
    return true;
}
