/* A key-value store over two nodes: the most recently used entries are local, up to a number; the others are
 * remote. */
#ifndef KV_STORE_H
#define KV_STORE_H

#include <emucxl_lib.h>

enum { KV_KEY_BYTES = 24, KV_VALUE_BYTES = 24 };

/* What a GET does with an entry that it finds on the remote node. */
typedef enum kv_policy {
    KV_LEAVE = 0, /* leaves it there */
    /* Moves it to the tail of the local list, as published: the next promotion pushes it out again. */
    KV_PROMOTE = 1,
} kv_policy;

typedef struct kv_entry {
    struct kv_entry *before, *after;
    char key[KV_KEY_BYTES], value[KV_VALUE_BYTES];
} kv_entry;

typedef struct kv_list {
    kv_entry *head, *tail;
    unsigned length;
} kv_list;

typedef struct kv_store {
    kv_list lists[2]; /* by node */
    unsigned local_slots, hits[2];
    kv_policy policy;
} kv_store;

void kv_open(kv_store* store, kv_policy policy, unsigned local_slots);
void kv_close(kv_store* store);
/* False: too long, or both nodes are full. */
bool kv_put(kv_store* store, const char* key, const char* value);
const char* kv_get(kv_store* store, const char* key); /* NULL: no such key. Good until the next call */
bool kv_delete(kv_store* store, const char* key);

#endif
