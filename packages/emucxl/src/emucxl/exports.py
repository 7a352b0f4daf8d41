"""Exports: memory of objects that speak the buffer protocol, held in place while native code works on it.

By the interpreter's stable ABI, so that no extension has to be built for it.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_int, c_void_p
from functools import cache
from typing import Any

from emucxl.buffer import Buffer
from emucxl.errors import ArgumentError, ArgumentTypeError, EmucxlError

_SIMPLE, _WRITABLE = 0, 1  # PyBUF_*


class _PyBuffer(ctypes.Structure):
    """Py_buffer, of the interpreter's stable ABI."""

    _fields_ = (
        ("buf", c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", c_int),
        ("ndim", c_int),
        ("format", ctypes.c_char_p),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("suboffsets", c_void_p),
        ("internal", c_void_p),
    )


class Export:
    """Memory of an object that speaks the buffer protocol, held in place until `release`."""

    def __init__(self, target: Any, writable: bool) -> None:
        self._view: _PyBuffer | None = None
        self._owner = target
        if isinstance(target, Buffer) and not _has_memory(target):
            self.address, self.size_bytes = target.address, target.size_bytes  # the core alone keeps it
            return
        view = _PyBuffer()
        flags = _WRITABLE if writable else _SIMPLE
        try:
            _calls().PyObject_GetBuffer(ctypes.py_object(target), byref(view), flags)
        except EmucxlError:
            raise  # one of our own buffers says what is wrong with it
        except (TypeError, BufferError, ValueError) as error:
            kind = ArgumentTypeError if isinstance(error, TypeError) else ArgumentError
            raise kind(
                f"got {target!r} ({error}); expected {'writable' if writable else 'readable'}, contiguous memory"
            ) from None
        self._view = view
        self.address, self.size_bytes = view.buf or 0, view.len

    def release(self) -> None:
        view, self._view = self._view, None
        if view is not None:
            _calls().PyBuffer_Release(byref(view))
        self._owner = None


class Exports:
    """The memory of a batch's copies. What several of them name is exported once."""

    def __init__(self) -> None:
        self._of: dict[tuple[int, bool], Export] = {}  # by identity: an export keeps what it is of

    def of(self, target: Any, writable: bool) -> Export:
        key = id(target), writable
        found = self._of.get(key)
        if found is None:
            found = self._of[key] = Export(target, writable)
        return found

    def release(self) -> None:
        """Lets go of all of it. A second call does nothing."""
        exports, self._of = self._of, {}
        for export in exports.values():
            export.release()


def _has_memory(buffer: Buffer) -> bool:
    from emucxl.tiers import is_touchable

    return is_touchable(buffer.tier.provider)


@cache
def _calls() -> ctypes.PyDLL:
    """The interpreter's own calls, with their types."""
    calls = ctypes.pythonapi
    calls.PyObject_GetBuffer.argtypes = [ctypes.py_object, POINTER(_PyBuffer), c_int]
    calls.PyObject_GetBuffer.restype = c_int
    calls.PyBuffer_Release.argtypes = [POINTER(_PyBuffer)]
    calls.PyBuffer_Release.restype = None
    return calls
