/* Exports: what views of a buffer's memory keep alive, and so what keeps the memory where it is.
 *
 * The export is an object of its own, and not the buffer, because consumers exist (torch.frombuffer is one)
 * that give their Py_buffer back at once and keep a reference to its `obj` alone.
 */
#include "extension.h"

typedef struct export_object {
    PyObject_HEAD buffer_object* buffer;
} export_object;

PyObject* export_make(buffer_object* buffer) {
    if (buffer_live(buffer) == NULL) return NULL;
    if (!buffer->tier->touchable) {
        PyErr_SetString(errors.unavailable, "a buffer in a tier without memory (Null) has no bytes to view");
        return NULL;
    }
    export_object* export = (export_object*)PyType_GenericAlloc(export_type, 0);
    if (export == NULL) return NULL;
    Py_INCREF((PyObject*)buffer);
    export->buffer = buffer;
    buffer_retain(buffer);
    return (PyObject*)export;
}

static int export_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((export_object*)self)->buffer);
    return 0;
}

static void export_dealloc(PyObject* self) {
    buffer_object* buffer = ((export_object*)self)->buffer;
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (buffer != NULL) {
        buffer_release(buffer);
        Py_DECREF((PyObject*)buffer);
    }
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject* export_get_buffer(PyObject* self, void* unused) {
    (void)unused;
    return Py_NewRef((PyObject*)((export_object*)self)->buffer);
}

static PyGetSetDef properties[] = {{"buffer", export_get_buffer, NULL, "Whose memory it is.", NULL}, {NULL}};

PyTypeObject* make_export_type(PyObject* module) {
    /* No tp_clear: a cycle through an export goes through its buffer's tier (see context.c). */
    static PyType_Slot slots[] = {
        {Py_tp_traverse, export_traverse},
        {Py_tp_dealloc, export_dealloc},
        {Py_tp_getset, properties},
        {Py_tp_doc, "Keeps a buffer's memory where it is; memoryview(buffer).obj is one."},
        {0, NULL}};
    static PyType_Spec spec = {.name = "emucxl._buffer.Export",
                               .basicsize = sizeof(export_object),
                               .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
                                        Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
                               .slots = slots};
    return (PyTypeObject*)PyType_FromModuleAndSpec(module, &spec, NULL);
}
