/* The module: its binding to libemucxl, its errors, and how its calls take arguments. */
#include "extension.h"

PyTypeObject *buffer_type, *export_type, *tier_type, *context_type;
calls native;
unsigned forks;
error_classes errors;

static PyObject* error_of;

/* Puts `value`, which it takes over, in the place of what was there. */
static void replace(PyObject** slot, PyObject* value) {
    PyObject* old = *slot;
    *slot = value;
    Py_XDECREF(old);
}

PyObject* raise_status(emx_status status) {
    PyObject* error = PyObject_CallFunction(error_of, "i", (int)status);
    if (error != NULL) {
        PyErr_SetObject((PyObject*)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return NULL;
}

PyObject* none_or_raise(emx_status status) {
    if (status != EMX_OK) return raise_status(status);
    Py_RETURN_NONE;
}

/* ---- arguments ----------------------------------------------------------------------------------------- */

static int index_of(const parameters* expected, PyObject* keyword) {
    for (int i = 0; expected->names[i] != NULL; i++)
        if (PyUnicode_CompareWithASCIIString(keyword, expected->names[i]) == 0) return i;
    return -1;
}

bool parse(const parameters* expected, PyObject* const* arguments, Py_ssize_t num_arguments,
           PyObject* keywords, PyObject** values) {
    int num_parameters = 0;
    for (; expected->names[num_parameters] != NULL; num_parameters++)
        values[num_parameters] = num_parameters < num_arguments ? arguments[num_parameters] : NULL;
    if (num_arguments > num_parameters) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %d arguments; got %zd", expected->call,
                     num_parameters, num_arguments);
        return false;
    }
    const Py_ssize_t num_keywords = keywords != NULL ? PyTuple_Size(keywords) : 0;
    for (Py_ssize_t i = 0; i < num_keywords; i++) {
        PyObject* keyword = PyTuple_GetItem(keywords, i);
        const int found = index_of(expected, keyword);
        if (found < 0 || values[found] != NULL) {
            PyErr_Format(PyExc_TypeError, found < 0 ? "%s() has no parameter %R" : "%s() got %R twice",
                         expected->call, keyword);
            return false;
        }
        values[found] = arguments[num_arguments + i];
    }
    for (int i = 0; i < expected->required; i++)
        if (values[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s() needs the argument '%s'", expected->call, expected->names[i]);
            return false;
        }
    return true;
}

bool parse_size(PyObject* value, const char* what, size_t* size) {
    const Py_ssize_t number = PyNumber_AsSsize_t(value, PyExc_OverflowError);
    if (number >= 0) {
        *size = (size_t)number;
        return true;
    }
    if (!PyErr_Occurred()) PyErr_Format(errors.argument, "got %s %zd; expected at least 0", what, number);
    else if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        PyErr_Format(errors.out_of_bounds,
                     "got %s %R; expected a number of bytes that fits the address space", what, value);
    } else if (PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        PyErr_Format(errors.argument_type, "got %s %R; expected an integer", what, value);
    }
    return false;
}

bool parse_bytes(PyObject* object, bool writable, const char* what, Py_buffer* view) {
    if (!PyObject_CheckBuffer(object)) {
        PyErr_Format(errors.argument_type,
                     "got %s %R; expected an object with the buffer protocol (bytes, memoryview, ndarray)",
                     what, (PyObject*)Py_TYPE(object));
        return false;
    }
    if (PyObject_GetBuffer(object, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) == 0) return true;
    if (PyErr_ExceptionMatches(errors.any))
        return false; /* one of our own buffers: it says what is wrong with it */
    PyObject *kind, *reason, *trace;
    PyErr_Fetch(&kind, &reason, &trace);
    PyErr_Format(errors.argument,
                 "got %s %R that gives no contiguous%s bytes (%S); expected contiguous ones, or a copy", what,
                 (PyObject*)Py_TYPE(object), writable ? " writable" : "", reason != NULL ? reason : kind);
    Py_XDECREF(kind);
    Py_XDECREF(reason);
    Py_XDECREF(trace);
    return false;
}

/* ---- binding ------------------------------------------------------------------------------------------- */

static void* address_in(PyObject* addresses, const char* name) {
    PyObject* number = PyMapping_GetItemString(addresses, name);
    if (number == NULL) return NULL;
    void* address = PyLong_AsVoidPtr(number);
    Py_DECREF(number);
    if (address == NULL && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "%s has no address", name);
    return address;
}

static bool bind_errors(PyObject* module) {
    const struct {
        PyObject** slot;
        const char* name;
    } classes[] = {{&errors.any, "EmucxlError"},
                   {&errors.argument, "ArgumentError"},
                   {&errors.argument_type, "ArgumentTypeError"},
                   {&errors.out_of_bounds, "OutOfBoundsError"},
                   {&errors.closed, "ClosedError"},
                   {&errors.in_use, "InUseError"},
                   {&errors.unavailable, "UnavailableError"}};
    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        PyObject* class = PyObject_GetAttrString(module, classes[i].name);
        if (class == NULL) return false;
        replace(classes[i].slot, class);
    }
    return true;
}

static PyObject* module_bind(PyObject* module, PyObject* arguments) {
    PyObject *addresses, *function, *error_module;
    calls found;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "OOO:bind", &addresses, &function, &error_module)) return NULL;
#define X(name)                                                   \
    found.name = (__typeof__(name)*)address_in(addresses, #name); \
    if (found.name == NULL) return NULL;
    CALLS(X)
#undef X
    if (!bind_errors(error_module)) return NULL;
    replace(&error_of, Py_NewRef(function));
    native = found;
    Py_RETURN_NONE;
}

static PyObject* module_forked(PyObject* module, PyObject* unused) {
    (void)module, (void)unused;
    forks++;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"bind", module_bind, METH_VARARGS,
     "bind(addresses, error_of, errors): takes the calls named in CALLS from a loaded libemucxl."},
    {"forked", module_forked, METH_NOARGS, "forked(): tells that this process is a fork's child."},
    {NULL}};

#define X(name) #name,
static const char* const call_names[] = {CALLS(X) NULL};
#undef X

static int add_call_names(PyObject* module) {
    PyObject* names = PyList_New(0);
    for (int i = 0; names != NULL && call_names[i] != NULL; i++) {
        PyObject* name = PyUnicode_FromString(call_names[i]);
        if (name == NULL || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    PyObject* tuple = names != NULL ? PyList_AsTuple(names) : NULL;
    const int result = tuple != NULL ? PyModule_AddObjectRef(module, "CALLS", tuple) : -1;
    Py_XDECREF(names);
    Py_XDECREF(tuple);
    return result;
}

static int module_exec(PyObject* module) {
    if (buffer_type != NULL) {
        PyErr_SetString(PyExc_ImportError,
                        "emucxl cannot be imported a second time (by a subinterpreter, say)");
        return -1;
    }
    context_type = make_context_type(module);
    tier_type = context_type != NULL ? make_tier_type(module) : NULL;
    export_type = tier_type != NULL ? make_export_type(module) : NULL;
    buffer_type = export_type != NULL ? make_buffer_type(module) : NULL;
    if (buffer_type == NULL) return -1;
    if (PyModule_AddType(module, context_type) < 0 || PyModule_AddType(module, tier_type) < 0 ||
        PyModule_AddType(module, buffer_type) < 0)
        return -1;
    return add_call_names(module);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "emucxl._buffer",
    .m_doc = "The extension behind emucxl.Buffer.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__buffer(void) { return PyModuleDef_Init(&definition); }
