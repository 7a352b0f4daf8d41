/* Buffer.read, read_into, write, fill and copy_from: priced accesses to a buffer's memory.
 *
 * Asking an argument for its number or its bytes may run Python code, which may free the buffer: whether it
 * is live is asked after that, and from then on it counts as in use. */
#include "extension.h"

/* `offset` and `size`, NULL or None where left out, as a checked range of a live buffer. Returns its context.
 */
static emx_context* parse_range(const buffer_object* buffer, PyObject* offset, PyObject* size, size_t* start,
                                size_t* size_bytes) {
    const bool to_the_end = size == NULL || size == Py_None;
    *start = 0;
    *size_bytes = 0;
    if (offset != NULL && !parse_size(offset, "offset", start)) return NULL;
    if (!to_the_end && !parse_size(size, "size", size_bytes)) return NULL;
    emx_context* handle = buffer_live(buffer);
    if (handle == NULL || !buffer_check_range(buffer, *start, *size_bytes)) return NULL;
    if (to_the_end) *size_bytes = buffer->size_bytes - *start;
    return handle;
}

PyObject* buffer_read(PyObject* self, PyObject* const* arguments, Py_ssize_t num_arguments,
                      PyObject* keywords) {
    static const parameters expected = {"read", 0, {"size", "offset", NULL}};
    buffer_object* buffer = (buffer_object*)self;
    PyObject* values[MAX_PARAMETERS];
    size_t start, size_bytes;
    if (!parse(&expected, arguments, num_arguments, keywords, values)) return NULL;
    emx_context* handle = parse_range(buffer, values[1], values[0], &start, &size_bytes);
    if (handle == NULL) return NULL;
    buffer_retain(buffer);
    PyObject* bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size_bytes);
    emx_status status = EMX_OK;
    if (bytes != NULL) {
        char* target = PyBytes_AsString(bytes);
        RUN(buffer_is_slow(buffer, size_bytes),
            status = native.emx_read(handle, buffer->pointer, start, target, size_bytes));
    }
    buffer_release(buffer);
    if (status == EMX_OK) return bytes;
    Py_DECREF(bytes);
    return raise_status(status);
}

/* read_into and write: between the buffer and other memory, values[0], from the offset values[1] on. */
static PyObject* exchange(buffer_object* buffer, PyObject* const* values, bool is_read) {
    Py_buffer view;
    size_t start = 0;
    if (values[1] != NULL && !parse_size(values[1], "offset", &start)) return NULL;
    if (!parse_bytes(values[0], is_read, is_read ? "target" : "data", &view)) return NULL;
    const size_t size_bytes = (size_t)view.len;
    emx_context* handle = buffer_live(buffer);
    if (handle == NULL || !buffer_check_range(buffer, start, size_bytes)) {
        PyBuffer_Release(&view);
        return NULL;
    }
    emx_status status;
    buffer_retain(buffer);
    RUN(buffer_is_slow(buffer, size_bytes),
        status = is_read ? native.emx_read(handle, buffer->pointer, start, view.buf, size_bytes)
                         : native.emx_write(handle, buffer->pointer, start, view.buf, size_bytes));
    buffer_release(buffer);
    PyBuffer_Release(&view);
    return none_or_raise(status);
}

PyObject* buffer_read_into(PyObject* self, PyObject* const* arguments, Py_ssize_t num_arguments,
                           PyObject* keywords) {
    static const parameters expected = {"read_into", 1, {"target", "offset", NULL}};
    PyObject* values[MAX_PARAMETERS];
    if (!parse(&expected, arguments, num_arguments, keywords, values)) return NULL;
    return exchange((buffer_object*)self, values, true);
}

PyObject* buffer_write(PyObject* self, PyObject* const* arguments, Py_ssize_t num_arguments,
                       PyObject* keywords) {
    static const parameters expected = {"write", 1, {"data", "offset", NULL}};
    PyObject* values[MAX_PARAMETERS];
    if (!parse(&expected, arguments, num_arguments, keywords, values)) return NULL;
    return exchange((buffer_object*)self, values, false);
}

PyObject* buffer_fill(PyObject* self, PyObject* const* arguments, Py_ssize_t num_arguments,
                      PyObject* keywords) {
    static const parameters expected = {"fill", 1, {"value", "offset", "size", NULL}};
    buffer_object* buffer = (buffer_object*)self;
    PyObject* values[MAX_PARAMETERS];
    size_t value, start, size_bytes;
    if (!parse(&expected, arguments, num_arguments, keywords, values)) return NULL;
    if (!parse_size(values[0], "value", &value)) return NULL;
    if (value > 255) return PyErr_Format(errors.argument, "got value %zu; expected a byte, 0 to 255", value);
    emx_context* handle = parse_range(buffer, values[1], values[2], &start, &size_bytes);
    if (handle == NULL) return NULL;
    emx_status status;
    buffer_retain(buffer);
    RUN(buffer_is_slow(buffer, size_bytes),
        status = native.emx_memset(handle, buffer->pointer, start, (int)value, size_bytes));
    buffer_release(buffer);
    return none_or_raise(status);
}

PyObject* buffer_copy_from(PyObject* self, PyObject* const* arguments, Py_ssize_t num_arguments,
                           PyObject* keywords) {
    static const parameters expected = {"copy_from", 1, {"source", "offset", "source_offset", "size", NULL}};
    buffer_object *buffer = (buffer_object*)self, *source;
    PyObject* values[MAX_PARAMETERS];
    size_t start = 0, source_start, size_bytes;
    if (!parse(&expected, arguments, num_arguments, keywords, values)) return NULL;
    if (Py_TYPE(values[0]) != buffer_type)
        return PyErr_Format(errors.argument_type,
                            "got a source %R; expected a Buffer (`write` takes other bytes)",
                            (PyObject*)Py_TYPE(values[0]));
    source = (buffer_object*)values[0];
    if (values[1] != NULL && !parse_size(values[1], "offset", &start)) return NULL;
    emx_context* handle = parse_range(source, values[2], values[3], &source_start, &size_bytes);
    if (handle == NULL || buffer_live(buffer) == NULL || !buffer_check_range(buffer, start, size_bytes))
        return NULL;
    if (source->tier->context != buffer->tier->context) {
        PyErr_SetString(errors.argument,
                        "got a source of another context, which has a clock of its own; `read` there and "
                        "`write` here instead");
        return NULL;
    }
    emx_status status;
    buffer_retain(buffer);
    buffer_retain(source);
    RUN(buffer_is_slow(buffer, size_bytes) || buffer_is_slow(source, size_bytes),
        status = native.emx_copy(handle, buffer->pointer, start, source->pointer, source_start, size_bytes));
    buffer_release(source);
    buffer_release(buffer);
    return none_or_raise(status);
}
