"""Buffers: allocations in a tier, as Python objects. The type itself is the extension `emucxl._buffer`.

A buffer shares its memory with whoever asks, without a copy: `memoryview(buffer)`, `numpy.frombuffer(buffer)`,
`torch.from_dlpack(buffer)`. Such a view is writable and unpriced, and while it lives the buffer stays where it is:
`free`, `resize` and `migrate` raise `InUseError`.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

from emucxl import _buffer, abi, errors, native
from emucxl._buffer import Buffer

__all__ = ["Buffer", "bind"]


@cache
def bind() -> ctypes.CDLL:
    """The native core, with the extension calling the same copy of it.

    Raises:
        UnavailableError: it cannot be loaded, or is of another version.
    """
    library = abi.load()
    addresses = {
        name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in _buffer.CALLS
    }
    _buffer.bind(addresses, native.error_of, errors)
    os.register_at_fork(after_in_child=_buffer.forked)
    return library
