/* Pointers and arguments that are wrong, and poison. */
#include <string.h>

#include "heap_facts/facts.h"

void a_wrong_pointer_is_refused(void) {
    heap* heap = make_anywhere(16 * MIB);
    heap_block block;
    for (size_t size = 16; size <= MIB; size *= 4) {
        char* pointer = get(heap, size);
        REQUIRE(heap_free(heap, pointer + 8) == EMX_E_BAD_POINTER &&
                strstr(emx_error_detail(), "8 bytes into"));
        REQUIRE(!heap_resize_in_place(heap, pointer + 8, 1));
        REQUIRE(heap_free(heap, pointer) == EMX_OK);
        REQUIRE(heap_free(heap, pointer) == EMX_E_BAD_POINTER && strstr(emx_error_detail(), "freed already"));
        REQUIRE(heap_query(heap, pointer, &block) == EMX_E_BAD_POINTER);
    }
    REQUIRE(heap_free(heap, NULL) == EMX_E_BAD_POINTER && heap_free(heap, &heap) == EMX_E_BAD_POINTER);
    end(heap);
}

void arguments_that_make_no_sense_are_refused(void) {
    heap *heap = make_anywhere(4 * MIB), *none = NULL;
    pages off_alignment = {.base = (char*)(2 * MIB) + 4096, .capacity_bytes = MIB};
    pages part_of_a_page = {.base = (char*)(2 * MIB), .capacity_bytes = 100};
    void* pointer;
    REQUIRE(heap_alloc(heap, 0, 0, &pointer) == EMX_E_INVALID);
    REQUIRE(heap_alloc(heap, 1, 3, &pointer) == EMX_E_INVALID &&
            heap_alloc(heap, 1, 4 * MIB, &pointer) == EMX_E_INVALID);
    REQUIRE(heap_alloc(heap, SIZE_MAX, 0, &pointer) == EMX_E_TIER_FULL);
    REQUIRE(heap_alloc(heap, 5 * MIB, 0, &pointer) == EMX_E_TIER_FULL);
    REQUIRE(heap_create(&off_alignment, &none) == EMX_E_INVALID);
    REQUIRE(heap_create(&part_of_a_page, &none) == EMX_E_INVALID && none == NULL);
    end(heap);
}

void a_poisoned_page_is_never_handed_out_again(void) {
    heap* heap = make_anywhere(MIB);
    char* base = get(heap, MIB);
    const void* bad;
    REQUIRE(heap_poison(heap, base + 100 * PAGE + 70, 1) == EMX_OK); /* live: kept until it is freed */
    REQUIRE(heap_first_poison(heap, base, MIB, &bad) && bad == base + 100 * PAGE + 64);
    REQUIRE(heap_free(heap, base) == EMX_OK && heap_poison(heap, base, 1) == EMX_OK); /* free: at once */
    REQUIRE(stats_of(heap).poisoned_bytes == 2 * PAGE);
    void* pointer;
    size_t num_pages = 0;
    while (heap_alloc(heap, PAGE, 0, &pointer) == EMX_OK) {
        REQUIRE(!heap_first_poison(heap, pointer, PAGE, &bad));
        ++num_pages;
    }
    REQUIRE(num_pages == MIB / PAGE - 2);
    end(heap);
}

void objects_on_a_poisoned_page_are_retired(void) {
    heap* heap = make_anywhere(MIB);
    static helper helper;
    char* pointers[2000];
    const void* bad;
    start(&helper, heap, alloc_and_free); /* its cache may hold some of them */
    await(&helper);
    for (int i = 0; i < 2000; ++i) pointers[i] = get(heap, 64);
    REQUIRE(heap_poison(heap, pointers[700], 1) == EMX_OK && heap_check(heap) == EMX_OK);
    for (int i = 0; i < 2000; ++i) REQUIRE(heap_free(heap, pointers[i]) == EMX_OK);
    REQUIRE(heap_free(heap, pointers[700]) == EMX_E_BAD_POINTER);
    REQUIRE(heap_check(heap) == EMX_OK);
    for (int i = 0; i < 2000; ++i) REQUIRE(!heap_first_poison(heap, get(heap, 64), 64, &bad));
    stop(&helper);
    end(heap);
}
