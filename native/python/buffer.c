#define PY_SSIZE_T_CLEAN
#include <Python.h>

static PyModuleDef_Slot slots[] = {{0, NULL}};

static PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "emucxl._buffer",
    .m_doc = "The extension behind emucxl.Buffer.",
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__buffer(void) { return PyModuleDef_Init(&module); }
