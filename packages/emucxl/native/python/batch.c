/* Context.read_batch and write_batch. */
#include "extension.h"

typedef struct batch {
    context_object* context;
    bool is_read;
    bool slow;
    Py_ssize_t num_accesses; /* that are filled in below */
    emx_access* accesses;
    Py_buffer* views;
    buffer_object** buffers;
} batch;

static bool add_access(batch* batch, PyObject* item) {
    PyObject *buffer, *offset, *bytes;
    if (!PyTuple_Check(item) || PyTuple_Size(item) != 3) {
        PyErr_Format(errors.argument_type, "got the access %R; expected (buffer, offset, %s)", item,
                     batch->is_read ? "target" : "data");
        return false;
    }
    buffer = PyTuple_GetItem(item, 0);
    offset = PyTuple_GetItem(item, 1);
    bytes = PyTuple_GetItem(item, 2);
    if (Py_TYPE(buffer) != buffer_type) {
        PyErr_Format(errors.argument_type, "got %R as buffer of an access; expected a Buffer",
                     (PyObject*)Py_TYPE(buffer));
        return false;
    }
    buffer_object* memory = (buffer_object*)buffer;
    if (memory->tier->context != batch->context) {
        PyErr_SetString(errors.argument, "got a buffer of another context; expected buffers of this one");
        return false;
    }
    Py_buffer* view = &batch->views[batch->num_accesses];
    size_t start;
    if (!parse_size(offset, "offset", &start)) return false;
    if (!parse_bytes(bytes, batch->is_read, batch->is_read ? "target" : "data", view)) return false;
    if (buffer_live(memory) == NULL || !buffer_check_range(memory, start, (size_t)view->len)) {
        PyBuffer_Release(view);
        return false;
    }
    batch->slow |= memory->tier->modelled || view->len >= SHORT_BYTES;
    Py_INCREF(buffer);
    buffer_retain(memory);
    batch->buffers[batch->num_accesses] = memory;
    batch->accesses[batch->num_accesses++] =
        (emx_access){memory->pointer, start, view->buf, (size_t)view->len};
    return true;
}

static bool fill(batch* batch, PyObject* items, Py_ssize_t num_items) {
    batch->accesses = PyMem_Calloc((size_t)num_items + 1, sizeof *batch->accesses);
    batch->views = PyMem_Calloc((size_t)num_items + 1, sizeof *batch->views);
    batch->buffers = PyMem_Calloc((size_t)num_items + 1, sizeof *batch->buffers);
    if (batch->accesses == NULL || batch->views == NULL || batch->buffers == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < num_items; i++)
        if (!add_access(batch, PyTuple_GetItem(items, i))) return false;
    return true;
}

static void empty(batch* batch) {
    for (Py_ssize_t i = 0; i < batch->num_accesses; i++) {
        buffer_release(batch->buffers[i]);
        Py_DECREF(batch->buffers[i]);
        PyBuffer_Release(&batch->views[i]);
    }
    PyMem_Free(batch->accesses);
    PyMem_Free(batch->views);
    PyMem_Free(batch->buffers);
}

/* As a tuple. What an iterator of the caller's raises goes through as it is. */
static PyObject* items_of(PyObject* accesses, bool is_read) {
    PyObject* iterator = PyObject_GetIter(accesses);
    if (iterator == NULL) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(errors.argument_type, "got the accesses %R; expected a list of (buffer, offset, %s)",
                         accesses, is_read ? "target" : "data");
        return NULL;
    }
    PyObject* items = PySequence_Tuple(iterator);
    Py_DECREF(iterator);
    return items;
}

static PyObject* run(PyObject* self, PyObject* accesses, bool is_read) {
    batch batch = {.context = (context_object*)self, .is_read = is_read};
    emx_context* handle = context_handle(batch.context);
    PyObject* items = handle != NULL ? items_of(accesses, is_read) : NULL;
    if (items == NULL) return NULL;
    const Py_ssize_t num_items = PyTuple_Size(items);
    /* Asking objects for their bytes may run Python code, and that may close the context. */
    batch.context->uses++;
    const bool filled = fill(&batch, items, num_items);
    emx_status status = EMX_OK;
    if (filled) {
        __typeof__(emx_read_batch)* call = is_read ? native.emx_read_batch : native.emx_write_batch;
        RUN(batch.slow, status = call(handle, batch.accesses, (size_t)num_items));
    }
    empty(&batch);
    batch.context->uses--;
    Py_DECREF(items);
    if (!filled) return NULL;
    if (status != EMX_OK) return raise_status(status);
    Py_RETURN_NONE;
}

PyObject* context_read_batch(PyObject* self, PyObject* accesses) { return run(self, accesses, true); }

PyObject* context_write_batch(PyObject* self, PyObject* accesses) { return run(self, accesses, false); }
