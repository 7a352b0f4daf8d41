/* The published experiment: 1000 keys, 300 of them local; how many of 50,000 GETs find theirs there?
 *
 *     cc kv_hits.c kv_store.c -lemucxl -o kv_hits && ./kv_hits
 *
 * Of the GETs, 90 % go to the first x % of the keys and then 10 % to the others; with x = 0, all go anywhere.
 * Give the x to run (default: 0, 10, ... 90). The numbers come from the C library's rand(), as they did for
 * the publication: with another C library they differ. */
#include <stdlib.h>
#include <string.h>

#include "kv_store.h"

enum { KEYS = 1000, LOCAL_SLOTS = 300, GETS = 50000, SEED = 1 };

static void fail(const char* what) {
    fprintf(stderr, "%s: %s\n", what, emx_error_detail());
    exit(1);
}

static void put(kv_store* store, int number) {
    char key[KV_KEY_BYTES], value[KV_VALUE_BYTES];
    snprintf(key, sizeof key, "key%d", number);
    snprintf(value, sizeof value, "value%d", number);
    if (!kv_put(store, key, value)) fail("put");
}

static void get(kv_store* store, int number) {
    char key[KV_KEY_BYTES], expected[KV_VALUE_BYTES];
    snprintf(key, sizeof key, "key%d", number);
    snprintf(expected, sizeof expected, "value%d", number);
    const char* value = kv_get(store, key);
    if (value == NULL || strcmp(value, expected) != 0) fail("get");
}

/* Percent of the GETs, cut (not rounded) after two digits, as it was published. */
static double local_percent(const kv_store* store) {
    return (int)(100 * (float)store->hits[LOCAL_MEMORY] / GETS * 100) / 100.0;
}

static double run(kv_policy policy, int favoured_percent) {
    kv_store store;
    kv_open(&store, policy, LOCAL_SLOTS);
    srand(SEED);
    for (int number = 1; number <= KEYS; number++) put(&store, number);
    const int favoured = favoured_percent * KEYS / 100, others = KEYS - favoured;
    const int favoured_gets = favoured > 0 ? GETS / 10 * 9 : 0;
    for (int i = 0; i < favoured_gets; i++) get(&store, 1 + rand() % favoured);
    for (int i = favoured_gets; i < GETS; i++) get(&store, favoured + 1 + rand() % others);
    const double percent = local_percent(&store);
    kv_close(&store);
    return percent;
}

static void print_row(int percent) {
    if (percent < 0 || percent > 99) return;
    printf("%3d  %7.2f  %7.2f\n", percent, run(KV_PROMOTE, percent), run(KV_LEAVE, percent));
}

int main(int argc, char** argv) {
    printf("  x  promote    leave\n");
    for (int i = 1; i < argc; i++) print_row(atoi(argv[i]));
    for (int percent = 0; argc == 1 && percent <= 90; percent += 10) print_row(percent);
    return 0;
}
