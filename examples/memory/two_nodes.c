/* The published interface in one page: memory on two nodes, moved and resized, read and written.
 *
 *     cc two_nodes.c -lemucxl -o two_nodes && ./two_nodes
 */
#include <stdlib.h>
#include <string.h>

#include <emucxl_lib.h>

static void* expect(void* pointer, const char* what) {
    if (pointer != NULL) return pointer;
    fprintf(stderr, "%s: %s\n", what, emx_error_detail());
    exit(1);
}

static void show(const char* what, void* pointer) {
    printf("%-22s node %d, %zu bytes; local %zu, remote %zu bytes in all\n", what,
           emucxl_get_numa_node(pointer), emucxl_get_size(pointer), emucxl_stats(LOCAL_MEMORY),
           emucxl_stats(REMOTE_MEMORY));
}

int main(void) {
    char text[32];
    emucxl_init();

    char* page = expect(emucxl_alloc(PAGE_SIZE, LOCAL_MEMORY), "alloc");
    show("allocated", page);
    emucxl_write(page, 100, "written locally", sizeof "written locally");
    page = expect(emucxl_migrate(page, REMOTE_MEMORY, PAGE_SIZE), "migrate");
    show("migrated", page);
    emucxl_read(page, 100, text, sizeof "written locally");
    printf("read back: %s\n", text);
    page = expect(emucxl_resize(page, LOCAL_MEMORY, PAGE_SIZE, 3 * PAGE_SIZE), "resize");
    show("resized", page);

    Key_value* pair = expect(emucxl_alloc(sizeof *pair, REMOTE_MEMORY), "alloc");
    strcpy(pair->key, "answer"); /* a plain store: not modelled, at this machine's speed */
    pair->value = 42;
    Key_value copy;
    emucxl_memcpy(&copy, pair, sizeof copy); /* between a node and the stack */
    printf("%s = %d, local: %s\n", copy.key, copy.value, emucxl_is_local(pair) ? "yes" : "no");

    emucxl_free(pair, sizeof *pair);
    emucxl_free(page, 3 * PAGE_SIZE);
    printf("left: local %zu, remote %zu bytes\n", emucxl_stats(LOCAL_MEMORY), emucxl_stats(REMOTE_MEMORY));
    emucxl_exit();
    return 0;
}
