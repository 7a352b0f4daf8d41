#include "coherence/memory.h"

#include <string.h>

typedef uint64_t __attribute__((may_alias)) word64;
typedef uint32_t __attribute__((may_alias)) word32;
typedef uint16_t __attribute__((may_alias)) word16;

/* The largest of 8, 4, 2 and 1 that `at` is a multiple of and that fits into `size_bytes`. */
static size_t step_at(const void* at, size_t size_bytes) {
    size_t step = 8;
    while (step > size_bytes || (uintptr_t)at % step != 0) step /= 2;
    return step;
}

/* Loads acquire and stores release, and pair with each other, in this process or another: who finds a word
 * that a host wrote back finds all that the host wrote back before it, as on a coherent bus. */
static void load_step(unsigned char* copy, const unsigned char* memory, size_t step) {
    if (step == 8) {
        const uint64_t value = __atomic_load_n((const word64*)memory, __ATOMIC_ACQUIRE);
        memcpy(copy, &value, 8);
    } else if (step == 4) {
        const uint32_t value = __atomic_load_n((const word32*)memory, __ATOMIC_ACQUIRE);
        memcpy(copy, &value, 4);
    } else if (step == 2) {
        const uint16_t value = __atomic_load_n((const word16*)memory, __ATOMIC_ACQUIRE);
        memcpy(copy, &value, 2);
    } else {
        *copy = __atomic_load_n(memory, __ATOMIC_ACQUIRE);
    }
}

static void store_step(unsigned char* memory, const unsigned char* copy, size_t step) {
    if (step == 8) {
        uint64_t value;
        memcpy(&value, copy, 8);
        __atomic_store_n((word64*)memory, value, __ATOMIC_RELEASE);
    } else if (step == 4) {
        uint32_t value;
        memcpy(&value, copy, 4);
        __atomic_store_n((word32*)memory, value, __ATOMIC_RELEASE);
    } else if (step == 2) {
        uint16_t value;
        memcpy(&value, copy, 2);
        __atomic_store_n((word16*)memory, value, __ATOMIC_RELEASE);
    } else {
        __atomic_store_n(memory, *copy, __ATOMIC_RELEASE);
    }
}

void memory_load(void* copy, const void* memory, size_t size_bytes) {
    unsigned char* to = copy;
    const unsigned char* from = memory;
    while (size_bytes > 0) {
        const size_t step = step_at(from, size_bytes);
        load_step(to, from, step);
        to += step, from += step, size_bytes -= step;
    }
}

void memory_store(void* memory, const void* copy, size_t size_bytes) {
    unsigned char* to = memory;
    const unsigned char* from = copy;
    while (size_bytes > 0) {
        const size_t step = step_at(to, size_bytes);
        store_step(to, from, step);
        to += step, from += step, size_bytes -= step;
    }
}

void memory_store_masked(void* memory, const void* copy, uint64_t mask) {
    while (mask != 0) {
        const unsigned first = (unsigned)__builtin_ctzll(mask);
        const uint64_t rest = ~(mask >> first);
        const unsigned length = rest == 0 ? 64 : (unsigned)__builtin_ctzll(rest); /* of the run of ones */
        memory_store((unsigned char*)memory + first, (const unsigned char*)copy + first, length);
        mask = first + length == 64 ? 0 : mask & (~UINT64_C(0) << (first + length));
    }
}
