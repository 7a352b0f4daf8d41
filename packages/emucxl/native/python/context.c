/* ContextBase and TierBase. */
#include "extension.h"

/* ---- ContextBase --------------------------------------------------------------------------------------- */

emx_context* context_handle_or_null(const context_object* context) {
    return context->generation == forks ? context->handle : NULL;
}

emx_context* context_handle(const context_object* context) {
    emx_context* handle = context_handle_or_null(context);
    if (handle == NULL)
        PyErr_SetString(errors.closed != NULL ? errors.closed : PyExc_ValueError,
                        context->handle == NULL
                            ? "the context is closed"
                            : "the context belongs to the parent process; open one after the fork");
    return handle;
}

static PyObject* context_adopt(PyObject* self, PyObject* address) {
    context_object* context = (context_object*)self;
    if (context->handle != NULL) {
        PyErr_SetString(errors.argument, "this context is open already; make another one");
        return NULL;
    }
    context->handle = PyLong_AsVoidPtr(address);
    context->generation = forks;
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject* context_retain(PyObject* self, PyObject* unused) {
    context_object* context = (context_object*)self;
    emx_context* handle = context_handle(context);
    (void)unused;
    if (handle == NULL) return NULL;
    context->uses++;
    return PyLong_FromVoidPtr(handle);
}

static PyObject* context_release(PyObject* self, PyObject* unused) {
    context_object* context = (context_object*)self;
    (void)unused;
    if (context->uses > 0) context->uses--;
    Py_RETURN_NONE;
}

static PyObject* context_close(PyObject* self, PyObject* unused) {
    context_object* context = (context_object*)self;
    emx_context* handle = context_handle_or_null(context);
    (void)unused;
    if (handle == NULL) {
        context->handle = NULL;
        Py_RETURN_NONE;
    }
    if (context->uses > 0) {
        PyErr_Format(errors.in_use,
                     "the context has uses in progress: %zd (views, arrays and tensors of its buffers, copy "
                     "engines, calls of "
                     "other threads); release them first",
                     context->uses);
        return NULL;
    }
    context->handle = NULL;
    RUN(true, native.emx_context_close(handle));
    Py_RETURN_NONE;
}

static PyObject* context_advance(PyObject* self, PyObject* duration) {
    context_object* context = (context_object*)self;
    emx_context* handle = context_handle(context);
    size_t duration_ns;
    if (handle == NULL || !parse_size(duration, "duration_ns", &duration_ns)) return NULL;
    context->uses++;
    RUN(true, native.emx_context_advance(handle, duration_ns));
    context->uses--;
    Py_RETURN_NONE;
}

static PyObject* context_get_now(PyObject* self, void* unused) {
    emx_context* handle = context_handle((context_object*)self);
    (void)unused;
    return handle != NULL ? PyLong_FromUnsignedLongLong(native.emx_context_now_ns(handle)) : NULL;
}

static PyObject* context_get_handle(PyObject* self, void* unused) {
    emx_context* handle = context_handle((context_object*)self);
    (void)unused;
    return handle != NULL ? PyLong_FromVoidPtr(handle) : NULL;
}

static PyObject* context_get_closed(PyObject* self, void* unused) {
    (void)unused;
    return PyBool_FromLong(context_handle_or_null((context_object*)self) == NULL);
}

/* Nothing uses it any more: uses, buffers and tiers keep their context alive. */
static void context_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    emx_context* handle = context_handle_or_null((context_object*)self);
    if (handle != NULL) native.emx_context_close(handle);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef context_methods[] = {
    {"_adopt", context_adopt, METH_O, "_adopt(handle): takes ownership of an open emx_context."},
    {"retain", context_retain, METH_NOARGS,
     "The handle (an emx_context *, as a number), kept open until `release`: `close` raises InUseError "
     "meanwhile."},
    {"release", context_release, METH_NOARGS, "Ends what one call of `retain` began."},
    {"close", context_close, METH_NOARGS,
     "Frees every buffer and tier; a second call does nothing.\n\n"
     "Raises:\n    InUseError: views of its buffers, copy engines or other threads use it; it stays as it "
     "is."},
    {"advance", context_advance, METH_O,
     "advance(duration_ns): stands for computing. The virtual clock jumps, the real one is waited for."},
    {"read_batch", context_read_batch, METH_O,
     "read_batch([(buffer, offset, target), ...]): fills every target from its buffer, all at once.\n\n"
     "Each tier's latency counts once and its bytes add up. Everything is checked before anything moves."},
    {"write_batch", context_write_batch, METH_O,
     "write_batch([(buffer, offset, data), ...]): writes every data to its buffer, all at once; see "
     "read_batch."},
    {NULL}};

static PyGetSetDef context_properties[] = {
    {"now_ns", context_get_now, NULL, "The context's clock.", NULL},
    {"handle", context_get_handle, NULL, "The emx_context *, as a number.", NULL},
    {"closed", context_get_closed, NULL, "Whether it was closed, or belongs to the process before a fork.",
     NULL},
    {NULL}};

PyTypeObject* make_context_type(PyObject* module) {
    static PyType_Slot slots[] = {{Py_tp_dealloc, context_dealloc},
                                  {Py_tp_methods, context_methods},
                                  {Py_tp_getset, context_properties},
                                  {Py_tp_doc, "The parts of emucxl.Context that calls on buffers use."},
                                  {0, NULL}};
    static PyType_Spec spec = {.name = "emucxl._buffer.ContextBase",
                               .basicsize = sizeof(context_object),
                               .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                               .slots = slots};
    return (PyTypeObject*)PyType_FromModuleAndSpec(module, &spec, NULL);
}

/* ---- TierBase ------------------------------------------------------------------------------------------ */

static PyObject* tier_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
    PyObject* context;
    unsigned number;
    int modelled, touchable;
    if (keywords != NULL && PyDict_Size(keywords) > 0) {
        PyErr_SetString(PyExc_TypeError, "tiers are made by Context.add_tier");
        return NULL;
    }
    PyObject* numbers = PyTuple_GetSlice(arguments, 0, 4);
    if (numbers == NULL) return NULL;
    const int parsed =
        PyArg_ParseTuple(numbers, "O!Ipp:Tier", context_type, &context, &number, &modelled, &touchable);
    Py_DECREF(numbers);
    if (!parsed) return NULL;
    tier_object* tier = (tier_object*)PyType_GenericAlloc(type, 0);
    if (tier == NULL) return NULL;
    Py_INCREF(context);
    tier->context = (context_object*)context;
    tier->number = number;
    tier->modelled = modelled;
    tier->touchable = touchable;
    return (PyObject*)tier;
}

static int tier_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((tier_object*)self)->context);
    return 0;
}

static void tier_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF((PyObject*)((tier_object*)self)->context);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject* tier_get_context(PyObject* self, void* unused) {
    (void)unused;
    return Py_NewRef((PyObject*)((tier_object*)self)->context);
}

static PyObject* tier_get_number(PyObject* self, void* unused) {
    (void)unused;
    return PyLong_FromUnsignedLong(((tier_object*)self)->number);
}

static PyObject* tier_get_modelled(PyObject* self, void* unused) {
    (void)unused;
    return PyBool_FromLong(((tier_object*)self)->modelled);
}

static PyMethodDef tier_methods[] = {{"alloc", FAST(tier_alloc),
                                      "alloc(size_bytes, alignment=0): a new Buffer of zeros.\n\n"
                                      "`alignment` is 0 (16 bytes) or a power of two up to 2 MiB.\n\n"
                                      "Raises:\n    TierFullError: the tier's capacity is used up.\n    "
                                      "SystemMemoryError: the system has not so much.\n"
                                      "    ArgumentError: a size of 0, or an alignment that is none.\n    "
                                      "ClosedError: the context is closed."},
                                     {NULL}};

static PyGetSetDef tier_properties[] = {
    {"context", tier_get_context, NULL, "The context it belongs to.", NULL},
    {"number", tier_get_number, NULL, "Its number in the native context.", NULL},
    {"modelled", tier_get_modelled, NULL, "Whether accesses to it are priced: it has a timing or a link.",
     NULL},
    {NULL}};

/* No tp_clear: a cycle through a tier goes through its context's dictionary, which Python clears. So
 * `context` is never NULL. */
PyTypeObject* make_tier_type(PyObject* module) {
    static PyType_Slot slots[] = {{Py_tp_new, tier_new},
                                  {Py_tp_traverse, tier_traverse},
                                  {Py_tp_dealloc, tier_dealloc},
                                  {Py_tp_methods, tier_methods},
                                  {Py_tp_getset, tier_properties},
                                  {Py_tp_doc, "The parts of emucxl.Tier that calls on buffers use."},
                                  {0, NULL}};
    static PyType_Spec spec = {.name = "emucxl._buffer.TierBase",
                               .basicsize = sizeof(tier_object),
                               .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
                               .slots = slots};
    return (PyTypeObject*)PyType_FromModuleAndSpec(module, &spec, NULL);
}
