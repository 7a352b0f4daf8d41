/* The part of a tier that the system is asked about, when what is promised is counted: what was reached, no more. Else a
 * tier of a terabyte would cost seconds each time that another one is added. Prints the bytes; ends with 1 at a mistake.
 */
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "emucxl/context.h"
#include "require.h"

enum { MIB = 1 << 20, TIER_BYTES = 64 * MIB, BLOCK_BYTES = 4 * MIB };

static size_t asked_bytes;

/* Stands before the C library's. */
int mincore(void* at, size_t size_bytes, unsigned char* present) {
    asked_bytes += size_bytes;
    return (int)syscall(SYS_mincore, at, size_bytes, present);
}

static emx_tier add_tier(emx_context* context, const char* name) {
    const emx_tier_config config = {
        .struct_bytes = sizeof config, .name = name, .capacity_bytes = TIER_BYTES, .fd = -1};
    emx_tier added;
    REQUIRE(emx_tier_add(context, &config, &added) == EMX_OK);
    return added;
}

int main(void) {
    emx_context* context;
    void* block;
    REQUIRE(emx_context_open(NULL, &context) == EMX_OK);
    const emx_tier first = add_tier(context, "first");
    (void)add_tier(context, "second"); /* for which the first one is counted */
    REQUIRE(asked_bytes == 0);
    REQUIRE(emx_alloc(context, first, BLOCK_BYTES, 0, &block) == EMX_OK);
    asked_bytes = 0; /* growth is checked too */
    (void)add_tier(context, "third");
    REQUIRE(asked_bytes >= BLOCK_BYTES && asked_bytes < TIER_BYTES / 2);
    printf("%zu bytes\n", asked_bytes);
    emx_context_close(context);
    return 0;
}
