/* Buffer: an allocation in a tier. Its priced accesses are in access.c. */
#include "extension.h"

#include <structmember.h>

/* ---- state --------------------------------------------------------------------------------------------- */

emx_context* buffer_live(const buffer_object* buffer) {
    if (buffer->pointer == NULL) {
        PyErr_SetString(errors.closed, "the buffer was freed");
        return NULL;
    }
    emx_context* handle = context_handle(buffer->tier->context);
    if (handle == NULL) return NULL;
    if (buffer->moving) {
        PyErr_SetString(errors.in_use, "another thread is freeing, resizing or migrating the buffer");
        return NULL;
    }
    return handle;
}

bool buffer_check_range(const buffer_object* buffer, size_t offset, size_t size_bytes) {
    if (offset <= buffer->size_bytes && size_bytes <= buffer->size_bytes - offset) return true;
    PyErr_Format(errors.out_of_bounds,
                 "got offset %zu and size %zu; expected a range within the buffer's %zu bytes", offset,
                 size_bytes, buffer->size_bytes);
    return false;
}

void buffer_retain(buffer_object* buffer) {
    buffer->uses++;
    buffer->tier->context->uses++;
}

void buffer_release(buffer_object* buffer) {
    buffer->uses--;
    buffer->tier->context->uses--;
}

bool buffer_is_slow(const buffer_object* buffer, size_t size_bytes) {
    return buffer->tier->modelled || size_bytes >= SHORT_BYTES;
}

/* Takes the buffer for a call that moves or frees it. NULL with ClosedError or InUseError. */
static emx_context* begin_move(buffer_object* buffer) {
    emx_context* handle = buffer_live(buffer);
    if (handle == NULL) return NULL;
    if (buffer->uses > 0) {
        PyErr_Format(errors.in_use,
                     "the buffer has uses in progress: %zd (views, arrays, tensors, copies in flight, calls "
                     "of other threads); "
                     "release them first",
                     buffer->uses);
        return NULL;
    }
    buffer->moving = true;
    buffer->tier->context->uses++;
    return handle;
}

static void end_move(buffer_object* buffer) {
    buffer->tier->context->uses--;
    buffer->moving = false;
}

/* ---- life ---------------------------------------------------------------------------------------------- */

PyObject* tier_alloc(PyObject* self, PyObject* const* arguments, Py_ssize_t num_arguments,
                     PyObject* keywords) {
    static const parameters expected = {"alloc", 1, {"size_bytes", "alignment", NULL}};
    tier_object* tier = (tier_object*)self;
    PyObject* values[MAX_PARAMETERS];
    size_t size_bytes, alignment = 0;
    if (!parse(&expected, arguments, num_arguments, keywords, values)) return NULL;
    if (!parse_size(values[0], "size_bytes", &size_bytes)) return NULL;
    if (values[1] != NULL && !parse_size(values[1], "alignment", &alignment)) return NULL;
    buffer_object* buffer = (buffer_object*)PyType_GenericAlloc(buffer_type, 0);
    if (buffer == NULL) return NULL;
    Py_INCREF(self);
    buffer->tier = tier;
    emx_context* handle = context_handle(tier->context);
    if (handle == NULL) {
        Py_DECREF(buffer);
        return NULL;
    }
    emx_status status;
    void* pointer = NULL;
    tier->context->uses++;
    RUN(size_bytes >= SHORT_BYTES,
        status = native.emx_alloc(handle, tier->number, size_bytes, alignment, &pointer));
    tier->context->uses--;
    if (status != EMX_OK) {
        raise_status(status);
        Py_DECREF(buffer);
        return NULL;
    }
    buffer->pointer = pointer;
    buffer->size_bytes = size_bytes;
    return (PyObject*)buffer;
}

static PyObject* buffer_free(PyObject* self, PyObject* unused) {
    buffer_object* buffer = (buffer_object*)self;
    (void)unused;
    if (buffer->pointer == NULL || context_handle_or_null(buffer->tier->context) == NULL) Py_RETURN_NONE;
    emx_context* handle = begin_move(buffer);
    if (handle == NULL) return NULL;
    emx_status status;
    RUN(buffer->size_bytes >= SHORT_BYTES, status = native.emx_free(handle, buffer->pointer));
    end_move(buffer);
    if (status == EMX_OK) buffer->pointer = NULL;
    return none_or_raise(status);
}

static PyObject* buffer_resize(PyObject* self, PyObject* const* arguments, Py_ssize_t num_arguments,
                               PyObject* keywords) {
    static const parameters expected = {"resize", 1, {"size_bytes", NULL}};
    buffer_object* buffer = (buffer_object*)self;
    PyObject* values[MAX_PARAMETERS];
    size_t size_bytes;
    if (!parse(&expected, arguments, num_arguments, keywords, values)) return NULL;
    if (!parse_size(values[0], "size_bytes", &size_bytes)) return NULL;
    emx_context* handle = begin_move(buffer);
    if (handle == NULL) return NULL;
    emx_status status;
    void* moved = buffer->pointer;
    RUN(buffer_is_slow(buffer, buffer->size_bytes) || size_bytes >= SHORT_BYTES,
        status = native.emx_resize(handle, buffer->pointer, size_bytes, &moved));
    end_move(buffer);
    if (status == EMX_OK) {
        buffer->pointer = moved;
        buffer->size_bytes = size_bytes;
    }
    return none_or_raise(status);
}

/* A tier of the buffer's context, given itself or by name; a new reference, or NULL with an error. */
static tier_object* find_tier(const buffer_object* buffer, PyObject* tier) {
    if (PyUnicode_Check(tier))
        tier = PyObject_CallMethod((PyObject*)buffer->tier->context, "tier", "O", tier);
    else Py_INCREF(tier);
    if (tier == NULL) return NULL;
    if (!PyObject_TypeCheck(tier, tier_type))
        PyErr_Format(errors.argument_type, "got a tier %R; expected a Tier or the name of one",
                     (PyObject*)Py_TYPE(tier));
    else if (((tier_object*)tier)->context != buffer->tier->context)
        PyErr_SetString(errors.argument, "got a tier of another context; expected one of the buffer's own");
    else return (tier_object*)tier;
    Py_DECREF(tier);
    return NULL;
}

static PyObject* buffer_migrate(PyObject* self, PyObject* const* arguments, Py_ssize_t num_arguments,
                                PyObject* keywords) {
    static const parameters expected = {"migrate", 1, {"tier", NULL}};
    buffer_object* buffer = (buffer_object*)self;
    PyObject* values[MAX_PARAMETERS];
    if (!parse(&expected, arguments, num_arguments, keywords, values)) return NULL;
    tier_object* tier = find_tier(buffer, values[0]);
    if (tier == NULL) return NULL;
    emx_context* handle = begin_move(buffer);
    if (handle == NULL) {
        Py_DECREF(tier);
        return NULL;
    }
    emx_status status;
    void* moved = buffer->pointer;
    RUN(buffer_is_slow(buffer, buffer->size_bytes) || tier->modelled,
        status = native.emx_migrate(handle, buffer->pointer, tier->number, &moved));
    end_move(buffer);
    if (status != EMX_OK) {
        Py_DECREF(tier);
        return raise_status(status);
    }
    PyObject* old_tier = (PyObject*)buffer->tier;
    buffer->pointer = moved;
    buffer->tier = tier;
    Py_DECREF(old_tier);
    Py_RETURN_NONE;
}

static PyObject* buffer_enter(PyObject* self, PyObject* unused) {
    (void)unused;
    return Py_NewRef(self);
}

/* When an error leaves the block, it is the one to tell of: a buffer with views then goes with the last of
 * them. */
static PyObject* buffer_exit(PyObject* self, PyObject* arguments) {
    const bool has_failed = PyTuple_Size(arguments) > 0 && PyTuple_GetItem(arguments, 0) != Py_None;
    PyObject* result = buffer_free(self, NULL);
    if (result != NULL || !has_failed || !PyErr_ExceptionMatches(errors.in_use)) return result;
    PyErr_Clear();
    Py_RETURN_NONE;
}

static int buffer_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((buffer_object*)self)->tier);
    return 0;
}

static void buffer_dealloc(PyObject* self) {
    buffer_object* buffer = (buffer_object*)self;
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (buffer->weak_references != NULL) PyObject_ClearWeakRefs(self);
    emx_context* handle = buffer->pointer != NULL ? context_handle_or_null(buffer->tier->context) : NULL;
    if (handle != NULL) native.emx_free(handle, buffer->pointer);
    Py_XDECREF((PyObject*)buffer->tier);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* ---- the buffer protocol and DLPack -------------------------------------------------------------------- */

static int buffer_get(PyObject* self, Py_buffer* view, int flags) {
    buffer_object* buffer = (buffer_object*)self;
    PyObject* export = export_make(buffer);
    view->obj = NULL;
    if (export == NULL) return -1;
    const int result =
        PyBuffer_FillInfo(view, export, buffer->pointer, (Py_ssize_t)buffer->size_bytes, 0, flags);
    Py_DECREF(export);
    return result;
}

/* Never called: views belong to exports. It is there because numpy.frombuffer takes a type that has none for
 * one whose views need not be kept, and then keeps the object alone. */
static void buffer_give_back(PyObject* self, Py_buffer* view) { (void)self, (void)view; }

static PyObject* buffer_dlpack_device(PyObject* self, PyObject* unused) {
    (void)self, (void)unused;
    return Py_BuildValue("(ii)", 1, 0); /* kDLCPU */
}

/* ---- the type ------------------------------------------------------------------------------------------ */

static PyObject* get_size_bytes(PyObject* self, void* unused) {
    const buffer_object* buffer = (buffer_object*)self;
    (void)unused;
    return buffer_live(buffer) != NULL ? PyLong_FromSize_t(buffer->size_bytes) : NULL;
}

static PyObject* get_address(PyObject* self, void* unused) {
    const buffer_object* buffer = (buffer_object*)self;
    (void)unused;
    return buffer_live(buffer) != NULL ? PyLong_FromVoidPtr(buffer->pointer) : NULL;
}

static PyObject* get_tier(PyObject* self, void* unused) {
    (void)unused;
    return Py_NewRef((PyObject*)((buffer_object*)self)->tier);
}

static PyObject* get_context(PyObject* self, void* unused) {
    (void)unused;
    return Py_NewRef((PyObject*)((buffer_object*)self)->tier->context);
}

static PyObject* get_freed(PyObject* self, void* unused) {
    const buffer_object* buffer = (buffer_object*)self;
    (void)unused;
    return PyBool_FromLong(buffer->pointer == NULL || context_handle_or_null(buffer->tier->context) == NULL);
}

static Py_ssize_t buffer_length(PyObject* self) {
    const buffer_object* buffer = (buffer_object*)self;
    return buffer_live(buffer) != NULL ? (Py_ssize_t)buffer->size_bytes : -1;
}

static PyObject* buffer_repr(PyObject* self) {
    const buffer_object* buffer = (buffer_object*)self;
    if (buffer->pointer == NULL || context_handle_or_null(buffer->tier->context) == NULL)
        return PyUnicode_FromString("<Buffer, freed>");
    PyObject* name = PyObject_GetAttrString((PyObject*)buffer->tier, "name");
    if (name == NULL) return NULL;
    PyObject* text = PyUnicode_FromFormat("<Buffer of %zu bytes in tier %R>", buffer->size_bytes, name);
    Py_DECREF(name);
    return text;
}

static PyMethodDef methods[] = {
    {"read", FAST(buffer_read),
     "read(size=None, offset=0): a copy of the bytes, to the end where `size` is left out."},
    {"read_into", FAST(buffer_read_into), "read_into(target, offset=0): fills a writable contiguous buffer."},
    {"write", FAST(buffer_write), "write(data, offset=0): writes the bytes of a contiguous buffer."},
    {"fill", FAST(buffer_fill), "fill(value, offset=0, size=None): writes one byte, 0 to 255, over a range."},
    {"copy_from", FAST(buffer_copy_from),
     "copy_from(source, offset=0, source_offset=0, size=None): copies from a buffer of the same context; "
     "ranges of one "
     "buffer may overlap."},
    {"resize", FAST(buffer_resize),
     "resize(size_bytes): the common bytes stay, new ones are zero; the address may change."},
    {"migrate", FAST(buffer_migrate),
     "migrate(tier): moves the bytes to another tier of the context; the address changes."},
    {"free", buffer_free, METH_NOARGS, "Gives the memory back; a second call does nothing."},
    {"__enter__", buffer_enter, METH_NOARGS, NULL},
    {"__exit__", buffer_exit, METH_VARARGS, NULL},
    {"__dlpack__", FAST(buffer_dlpack),
     "__dlpack__(*, stream=None, max_version=None, dl_device=None, copy=None): the bytes as a "
     "one-dimensional uint8 tensor."},
    {"__dlpack_device__", buffer_dlpack_device, METH_NOARGS, "(1, 0): the CPU."},
    {NULL}};

static PyGetSetDef properties[] = {
    {"size_bytes", get_size_bytes, NULL, "How many bytes it has.", NULL},
    {"address", get_address, NULL, "Where they are, until it is resized, migrated or freed.", NULL},
    {"tier", get_tier, NULL, "The tier it is in.", NULL},
    {"context", get_context, NULL, "The context it belongs to.", NULL},
    {"freed", get_freed, NULL, "Whether it was freed, or its context closed.", NULL},
    {NULL}};

static PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(buffer_object, weak_references), READONLY, NULL}, {NULL}};

PyTypeObject* make_buffer_type(PyObject* module) {
    /* No tp_clear: a cycle through a buffer goes through its tier (see context.c). So `tier` is never NULL.
     */
    static PyType_Slot slots[] = {
        {Py_tp_traverse, buffer_traverse},
        {Py_tp_dealloc, buffer_dealloc},
        {Py_tp_repr, buffer_repr},
        {Py_tp_methods, methods},
        {Py_tp_getset, properties},
        {Py_tp_members, members},
        {Py_sq_length, buffer_length},
        {Py_bf_getbuffer, buffer_get},
        {Py_bf_releasebuffer, buffer_give_back},
        {Py_tp_doc,
         "An allocation in a tier; made by Tier.alloc and Context.alloc, freed with its last reference.\n\n"
         "`read`, `write`, `fill`, `copy_from`, `resize` and `migrate` are priced by the tier's timing. It "
         "also speaks the buffer\n"
         "protocol and DLPack: memoryview(buffer), numpy.frombuffer(buffer), torch.from_dlpack(buffer) share "
         "its memory, writable\n"
         "and unpriced. While such a view lives, `free`, `resize` and `migrate` raise InUseError.\n\n"
         "Thread safety: any call from any thread; threads that touch the same bytes order themselves."},
        {0, NULL}};
    static PyType_Spec spec = {.name = "emucxl._buffer.Buffer",
                               .basicsize = sizeof(buffer_object),
                               .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
                                        Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
                               .slots = slots};
    return (PyTypeObject*)PyType_FromModuleAndSpec(module, &spec, NULL);
}
