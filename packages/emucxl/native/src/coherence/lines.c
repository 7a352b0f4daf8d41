#include "coherence/lines.h"

#include <stdlib.h>

static uint32_t* bucket_of(const line_set* lines, uint64_t number) {
    const uint64_t mixed = number * UINT64_C(0x9e3779b97f4a7c15);
    return &lines->buckets[(mixed ^ mixed >> 32) & (lines->room - 1)];
}

static void link_line(line_set* lines, size_t index) {
    uint32_t* bucket = bucket_of(lines, lines->items[index].number);
    lines->items[index].next = *bucket;
    *bucket = (uint32_t)index + 1;
}

static void unlink_line(line_set* lines, size_t index) {
    uint32_t* at = bucket_of(lines, lines->items[index].number);
    while (*at != index + 1) at = &lines->items[*at - 1].next;
    *at = lines->items[index].next;
}

bool lines_reserve(line_set* lines, size_t count) {
    if (count <= lines->room) return true;
    size_t room = lines->room > 0 ? lines->room : 16;
    while (room < count) room *= 2;
    if (room > UINT32_MAX) return false;
    cache_line* items = realloc(lines->items, room * sizeof *items);
    if (items == NULL) return false;
    lines->items = items;
    uint32_t* buckets = calloc(room, sizeof *buckets);
    if (buckets == NULL) return false;
    free(lines->buckets);
    lines->buckets = buckets;
    lines->room = room;
    for (size_t index = 0; index < lines->count; index++) link_line(lines, index);
    return true;
}

void lines_release(line_set* lines) {
    free(lines->items);
    free(lines->buckets);
}

cache_line* lines_find(const line_set* lines, uint64_t number) {
    if (lines->count == 0) return NULL;
    for (uint32_t at = *bucket_of(lines, number); at != 0; at = lines->items[at - 1].next)
        if (lines->items[at - 1].number == number) return &lines->items[at - 1];
    return NULL;
}

cache_line* lines_add(line_set* lines, uint64_t number) {
    const size_t index = lines->count++;
    cache_line* added = &lines->items[index];
    added->number = number;
    added->valid = added->dirty = 0;
    link_line(lines, index);
    return added;
}

void lines_remove(line_set* lines, size_t index) {
    const size_t last = --lines->count;
    unlink_line(lines, index);
    if (index == last) return;
    unlink_line(lines, last);
    lines->items[index] = lines->items[last];
    link_line(lines, index);
}
