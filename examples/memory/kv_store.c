#include "kv_store.h"

#include <string.h>

static void link_head(kv_list* list, kv_entry* entry) {
    entry->before = NULL;
    entry->after = list->head;
    *(list->head != NULL ? &list->head->before : &list->tail) = entry;
    list->head = entry;
    list->length++;
}

static void link_tail(kv_list* list, kv_entry* entry) {
    entry->before = list->tail;
    entry->after = NULL;
    *(list->tail != NULL ? &list->tail->after : &list->head) = entry;
    list->tail = entry;
    list->length++;
}

static void unlink_entry(kv_list* list, kv_entry* entry) {
    *(entry->before != NULL ? &entry->before->after : &list->head) = entry->after;
    *(entry->after != NULL ? &entry->after->before : &list->tail) = entry->before;
    list->length--;
}

static kv_entry* search(const kv_list* list, const char* key) {
    kv_entry* entry = list->head;
    while (entry != NULL && strcmp(entry->key, key) != 0) entry = entry->after;
    return entry;
}

/* Takes the entry out of its list and to the other node; NULL, with nothing changed, if that is full. */
static kv_entry* move(kv_store* store, kv_entry* entry, int node) {
    kv_list* from = &store->lists[node == LOCAL_MEMORY ? REMOTE_MEMORY : LOCAL_MEMORY];
    kv_entry *before = entry->before, *after = entry->after;
    kv_entry* moved = emucxl_migrate(entry, node, sizeof *entry);
    if (moved == NULL) return NULL;
    *(before != NULL ? &before->after : &from->head) = after;
    *(after != NULL ? &after->before : &from->tail) = before;
    from->length--;
    return moved;
}

/* Sends the entry used longest ago to the remote node. */
static bool evict(kv_store* store) {
    kv_entry* moved = move(store, store->lists[LOCAL_MEMORY].tail, REMOTE_MEMORY);
    if (moved != NULL) link_head(&store->lists[REMOTE_MEMORY], moved);
    return moved != NULL;
}

static kv_entry* promote(kv_store* store, kv_entry* entry) {
    kv_list* local = &store->lists[LOCAL_MEMORY];
    if (local->length == store->local_slots && !evict(store)) return entry;
    kv_entry* moved = move(store, entry, LOCAL_MEMORY);
    if (moved == NULL) return entry;
    link_tail(local, moved);
    return moved;
}

/* Finds an entry and does what its use entails. */
static kv_entry* use(kv_store* store, const char* key, int* node) {
    kv_list* local = &store->lists[LOCAL_MEMORY];
    kv_entry* entry = search(local, key);
    *node = LOCAL_MEMORY;
    if (entry != NULL) {
        unlink_entry(local, entry);
        link_head(local, entry);
        return entry;
    }
    *node = REMOTE_MEMORY;
    entry = search(&store->lists[REMOTE_MEMORY], key);
    return entry != NULL && store->policy == KV_PROMOTE ? promote(store, entry) : entry;
}

void kv_open(kv_store* store, kv_policy policy, unsigned local_slots) {
    *store = (kv_store){.local_slots = local_slots, .policy = policy};
    emucxl_init();
}

void kv_close(kv_store* store) {
    for (int node = LOCAL_MEMORY; node <= REMOTE_MEMORY; node++)
        while (store->lists[node].head != NULL) {
            kv_entry* entry = store->lists[node].head;
            unlink_entry(&store->lists[node], entry);
            emucxl_free(entry, sizeof *entry);
        }
    emucxl_exit();
}

bool kv_put(kv_store* store, const char* key, const char* value) {
    int node;
    if (strlen(key) >= KV_KEY_BYTES || strlen(value) >= KV_VALUE_BYTES) return false;
    kv_entry* entry = use(store, key, &node);
    if (entry == NULL) {
        if (store->lists[LOCAL_MEMORY].length == store->local_slots && !evict(store)) return false;
        entry = emucxl_alloc(sizeof *entry, LOCAL_MEMORY);
        if (entry == NULL) return false;
        strcpy(entry->key, key);
        link_head(&store->lists[LOCAL_MEMORY], entry);
    }
    strcpy(entry->value, value);
    return true;
}

const char* kv_get(kv_store* store, const char* key) {
    int node;
    kv_entry* entry = use(store, key, &node);
    if (entry == NULL) return NULL;
    store->hits[node]++;
    return entry->value;
}

bool kv_delete(kv_store* store, const char* key) {
    for (int node = LOCAL_MEMORY; node <= REMOTE_MEMORY; node++) {
        kv_entry* entry = search(&store->lists[node], key);
        if (entry == NULL) continue;
        unlink_entry(&store->lists[node], entry);
        emucxl_free(entry, sizeof *entry);
        return true;
    }
    return false;
}
