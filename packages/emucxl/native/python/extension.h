/* Shared by the files of emucxl._buffer.
 *
 * The types: Buffer, an allocation; Export, a view's hold on one; TierBase and ContextBase, what of
 * emucxl.Tier and emucxl.Context the calls on buffers need. An export keeps its buffer alive, a buffer its
 * tier, a tier its context; the context's memory goes with the last of them.
 *
 * Thread safety: the fields below are read and written with the GIL held. What runs without it (large and
 * modelled calls) counts as a use of its buffer and context meanwhile, so that nothing it works on is freed,
 * moved or closed.
 *
 * Invariants
 *   1. context->handle is NULL before the native context is opened and after it was closed.
 *   2. context->uses is the number of exports and calls in flight on all its buffers, and of other calls in
 * flight on it.
 *   3. buffer->uses > 0 and buffer->moving exclude each other. While either holds, nothing frees, resizes or
 * migrates it.
 */
#ifndef EMX_PYTHON_EXTENSION_H
#define EMX_PYTHON_EXTENSION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

#include "emucxl/context.h"

typedef struct context_object {
    PyObject_HEAD emx_context* handle;
    Py_ssize_t uses;
    unsigned generation; /* of the process that opened it: see `forks` */
} context_object;

typedef struct tier_object {
    PyObject_HEAD context_object* context;
    emx_tier number;
    bool modelled;
    bool touchable; /* false: addresses without memory */
} tier_object;

typedef struct buffer_object {
    PyObject_HEAD tier_object* tier;
    char* pointer; /* NULL: freed */
    size_t size_bytes;
    Py_ssize_t uses;
    bool moving; /* a call that frees or moves it is in flight in some thread */
    PyObject* weak_references;
} buffer_object;

extern PyTypeObject *buffer_type, *export_type, *tier_type, *context_type;

/* ---- the native core ----------------------------------------------------------------------------------- */

#define CALLS(X)           \
    X(emx_context_close)   \
    X(emx_context_now_ns)  \
    X(emx_context_advance) \
    X(emx_alloc)           \
    X(emx_free)            \
    X(emx_resize)          \
    X(emx_migrate)         \
    X(emx_read)            \
    X(emx_write)           \
    X(emx_memset)          \
    X(emx_copy)            \
    X(emx_read_batch)      \
    X(emx_write_batch)

/* Where the calls are, in the library that emucxl.native loaded. */
typedef struct calls {
#define X(name) __typeof__(name)* name;
    CALLS(X)
#undef X
} calls;

extern calls native;

/* How often this process is a fork's child. A context of another generation is not touched: its locks are in
 * an unknown state, and what it would free may be shared with the parent. */
extern unsigned forks;

/* Shorter unmodelled calls keep the GIL: giving it up costs more than they do. */
enum { SHORT_BYTES = 16384 };

/* Runs `call` without the GIL where `slow`. */
#define RUN(slow, call)                                              \
    do {                                                             \
        PyThreadState* saved_ = (slow) ? PyEval_SaveThread() : NULL; \
        call;                                                        \
        if (saved_ != NULL) PyEval_RestoreThread(saved_);            \
    } while (0)

/* ---- errors -------------------------------------------------------------------------------------------- */

/* Classes of emucxl.errors. */
typedef struct error_classes {
    PyObject *any, *argument, *argument_type, *out_of_bounds, *closed, *in_use, *unavailable;
} error_classes;

extern error_classes errors;

/* Raises what `status` stands for (emucxl.native.error_of). Returns NULL. */
PyObject* raise_status(emx_status status);
/* None for EMX_OK; else as raise_status. */
PyObject* none_or_raise(emx_status status);

/* ---- arguments ----------------------------------------------------------------------------------------- */

enum { MAX_PARAMETERS = 4 };

typedef struct parameters {
    const char* call;
    int required;
    const char* names[MAX_PARAMETERS + 1]; /* ends with NULL */
} parameters;

/* Sorts the arguments of a METH_FASTCALL | METH_KEYWORDS call by parameter; those left out are NULL. */
bool parse(const parameters* expected, PyObject* const* arguments, Py_ssize_t num_arguments,
           PyObject* keywords, PyObject** values);
/* An integer >= 0; `what` names it in the error. */
bool parse_size(PyObject* value, const char* what, size_t* size);
/* The bytes of an object, as Py_buffer; ArgumentError when they are not contiguous, or read-only where
 * `writable`. */
bool parse_bytes(PyObject* object, bool writable, const char* what, Py_buffer* view);

/* ---- contexts, tiers, buffers -------------------------------------------------------------------------- */

/* The native context, or NULL with ClosedError. */
emx_context* context_handle(const context_object* context);
/* The same without an error. */
emx_context* context_handle_or_null(const context_object* context);

/* The context of a live buffer that nobody moves, or NULL with ClosedError or InUseError. */
emx_context* buffer_live(const buffer_object* buffer);
/* Bounds-checks a range of a live buffer. */
bool buffer_check_range(const buffer_object* buffer, size_t offset, size_t size_bytes);
/* Whether an access gives up the GIL. */
bool buffer_is_slow(const buffer_object* buffer, size_t size_bytes);
/* Begins and ends a use. */
void buffer_retain(buffer_object* buffer);
void buffer_release(buffer_object* buffer);
/* An object that counts as a use of a live buffer for as long as it lives. */
PyObject* export_make(buffer_object* buffer);

/* ContextBase.read_batch(accesses), .write_batch(accesses) */
PyObject* context_read_batch(PyObject* self, PyObject* accesses);
PyObject* context_write_batch(PyObject* self, PyObject* accesses);

/* Calls of TierBase and Buffer, METH_FASTCALL | METH_KEYWORDS. */
typedef PyObject* fast_call(PyObject* self, PyObject* const* arguments, Py_ssize_t num_arguments,
                            PyObject* keywords);
#define FAST(function) (PyCFunction)(void (*)(void)) function, METH_FASTCALL | METH_KEYWORDS

fast_call tier_alloc, buffer_read, buffer_read_into, buffer_write, buffer_fill, buffer_copy_from,
    buffer_dlpack;

PyTypeObject* make_buffer_type(PyObject* module);
PyTypeObject* make_export_type(PyObject* module);
PyTypeObject* make_tier_type(PyObject* module);
PyTypeObject* make_context_type(PyObject* module);

#endif
