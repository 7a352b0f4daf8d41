/* Buffer.__dlpack__: the structures of DLPack (https://dmlc.github.io/dlpack/latest/) and the capsules they
 * travel in. */
#include "extension.h"

#include <stdlib.h>

enum { DEVICE_CPU = 1, TYPE_UINT = 1, FLAG_COPIED = 2, MAJOR_VERSION = 1, MINOR_VERSION = 0 };

typedef struct tensor {
    void* data;
    struct {
        int32_t type, id;
    } device;
    int32_t num_dimensions;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} tensor;

typedef struct managed {
    tensor tensor;
    void* owner;
    void (*deleter)(struct managed*);
} managed;

typedef struct versioned {
    struct {
        uint32_t major, minor;
    } version;
    void* owner;
    void (*deleter)(struct versioned*);
    uint64_t flags;
    tensor tensor;
} versioned;

/* Either of the two, and what its pointers point to. */
typedef struct exported {
    union {
        managed managed;
        versioned versioned;
    };
    int64_t shape, stride;
} exported;

/* The owner is an export of the buffer, or the copy: letting go of it is all there is to do. Consumers call
 * this in any thread, with or without the GIL, and as late as at exit, when nothing can be let go of any
 * more. */
static void let_go(void* memory, PyObject* owner) {
    if (!Py_IsInitialized()) return;
    PyGILState_STATE state = PyGILState_Ensure();
    Py_DECREF(owner);
    free(memory);
    PyGILState_Release(state);
}

static void delete_managed(managed* self) { let_go(self, self->owner); }
static void delete_versioned(versioned* self) { let_go(self, self->owner); }

static const char* const names[] = {"dltensor", "dltensor_versioned"};

/* Of a capsule that nobody took the tensor out of; who does renames it. */
static void destroy_capsule(PyObject* capsule) {
    exported* exported;
    if (PyCapsule_IsValid(capsule, names[0]) && (exported = PyCapsule_GetPointer(capsule, names[0])) != NULL)
        delete_managed(&exported->managed);
    else if (PyCapsule_IsValid(capsule, names[1]) &&
             (exported = PyCapsule_GetPointer(capsule, names[1])) != NULL)
        delete_versioned(&exported->versioned);
}

/* Keeps the memory alive: an export of the buffer, or (priced as a read) a copy of its bytes. */
static PyObject* make_owner(buffer_object* buffer, bool copy, void** data) {
    if (!copy) {
        *data = buffer->pointer;
        return export_make(buffer);
    }
    PyObject* bytes = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)buffer->size_bytes);
    PyObject* none = bytes != NULL ? PyObject_CallMethod((PyObject*)buffer, "read_into", "O", bytes) : NULL;
    if (none == NULL) {
        Py_XDECREF(bytes);
        return NULL;
    }
    Py_DECREF(none);
    *data = PyByteArray_AsString(bytes);
    return bytes;
}

static PyObject* make_capsule(buffer_object* buffer, bool is_versioned, bool copy) {
    void* data;
    PyObject* owner = make_owner(buffer, copy, &data);
    if (owner == NULL) return NULL;
    exported* made = calloc(1, sizeof *made);
    if (made == NULL) {
        Py_DECREF(owner);
        return PyErr_NoMemory();
    }
    made->shape = (int64_t)(copy ? PyByteArray_Size(owner) : (Py_ssize_t)buffer->size_bytes);
    made->stride = 1;
    const tensor tensor = {.data = data,
                           .device = {DEVICE_CPU, 0},
                           .num_dimensions = 1,
                           .dtype = {TYPE_UINT, 8, 1},
                           .shape = &made->shape,
                           .strides = &made->stride};
    if (is_versioned)
        made->versioned = (versioned){.version = {MAJOR_VERSION, MINOR_VERSION},
                                      .owner = owner,
                                      .deleter = delete_versioned,
                                      .flags = copy ? FLAG_COPIED : 0,
                                      .tensor = tensor};
    else made->managed = (managed){.tensor = tensor, .owner = owner, .deleter = delete_managed};
    PyObject* capsule = PyCapsule_New(made, names[is_versioned], destroy_capsule);
    if (capsule == NULL) let_go(made, owner);
    return capsule;
}

static bool given(PyObject* value) { return value != NULL && value != Py_None; }

/* `dl_device` and `max_version` are pairs of integers. */
static bool parse_pair(PyObject* value, const char* what, long* first, long* second) {
    if (PyTuple_Check(value) && PyArg_ParseTuple(value, "ll", first, second)) return true;
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError, "got %s %R; expected a pair of integers", what, value);
    return false;
}

PyObject* buffer_dlpack(PyObject* self, PyObject* const* arguments, Py_ssize_t num_arguments,
                        PyObject* keywords) {
    static const parameters expected = {
        "__dlpack__", 0, {"stream", "max_version", "dl_device", "copy", NULL}};
    PyObject* values[MAX_PARAMETERS];
    long major = 0, minor, device = DEVICE_CPU, id = 0;
    if (!parse(&expected, arguments, num_arguments, keywords, values)) return NULL;
    if (given(values[0]))
        return PyErr_Format(errors.argument, "got stream %R; expected None: the CPU has no streams",
                            values[0]);
    if (given(values[1]) && !parse_pair(values[1], "max_version", &major, &minor)) return NULL;
    if (given(values[2]) && !parse_pair(values[2], "dl_device", &device, &id)) return NULL;
    if (device != DEVICE_CPU || id != 0)
        return PyErr_Format(PyExc_BufferError, "got dl_device %R; expected (1, 0): the memory is the CPU's",
                            values[2]);
    const int copy = given(values[3]) ? PyObject_IsTrue(values[3]) : 0;
    if (copy < 0) return NULL;
    return make_capsule((buffer_object*)self, major >= MAJOR_VERSION, copy);
}
