/* A linked queue whose elements live on a node. Both nodes take their turn twice, in both orders, so that
 * what comes first (and pays for warming up) does not pass for what is slower.
 *
 *     cc node_queue.c -lemucxl -o node_queue && ./node_queue 15000
 */
#include <stdlib.h>
#include <time.h>

#include <emucxl_lib.h>

struct element {
    struct element* next;
    int value;
};

struct queue {
    int node, length;
    struct element *first, *last;
};

static bool enqueue(struct queue* queue, int value) {
    struct element* element = emucxl_alloc(sizeof *element, queue->node);
    if (element == NULL) return false;
    emucxl_write(&element->value, 0, &value, sizeof value); /* priced, where the node is modelled */
    if (queue->last != NULL) emucxl_write(&queue->last->next, 0, &element, sizeof element);
    else queue->first = element;
    queue->last = element;
    queue->length++;
    return true;
}

static bool dequeue(struct queue* queue, int* value) {
    struct element *element = queue->first, read;
    if (element == NULL || !emucxl_read(element, 0, &read, sizeof read)) return false;
    *value = read.value;
    queue->first = read.next;
    if (queue->first == NULL) queue->last = NULL;
    queue->length--;
    emucxl_free(element, sizeof *element);
    return true;
}

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static bool run(int node, int count) {
    struct queue queue = {.node = node};
    int value;
    const double start_ms = now_ms();
    for (int i = 0; i < count; i++)
        if (!enqueue(&queue, 3 * i)) return false;
    const double middle_ms = now_ms();
    for (int i = 0; i < count; i++)
        if (!dequeue(&queue, &value) || value != 3 * i) return false;
    const double end_ms = now_ms();
    printf("%-6s  %10.2f  %10.2f\n", node == LOCAL_MEMORY ? "local" : "remote", middle_ms - start_ms,
           end_ms - middle_ms);
    return queue.length == 0 && !dequeue(&queue, &value);
}

int main(int argc, char** argv) {
    static const int order[] = {LOCAL_MEMORY, REMOTE_MEMORY, REMOTE_MEMORY, LOCAL_MEMORY};
    const int count = argc > 1 ? atoi(argv[1]) : 15000;
    emucxl_init();
    printf("%d elements\nnode    enqueue ms  dequeue ms\n", count);
    bool good = true;
    for (size_t i = 0; i < sizeof order / sizeof *order && good; i++) good = run(order[i], count);
    if (!good) fprintf(stderr, "failed: %s\n", emx_error_detail());
    emucxl_exit();
    return good ? 0 : 1;
}
