"""libemucxl_bench: the loops that benchmarks time, without an interpreter in between (native/bench/)."""

from __future__ import annotations

import ctypes
from functools import cache

from emucxl import native
from emucxl.errors import UnavailableError

LIBRARY = "libemucxl_bench.so"


def declared(signatures: native.Signatures) -> ctypes.CDLL:
    """The library, with these of its calls declared.

    Raises:
        UnavailableError: it cannot be loaded.
    """
    library = _load()
    native.declare(library, signatures)
    return library


@cache
def _load() -> ctypes.CDLL:
    native.load()  # first, so that the loops find the very library that is being measured
    path = native.library_path().with_name(LIBRARY)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UnavailableError(
            f"cannot load the benchmarks' loops {path}: {error}; reinstall the package"
        ) from error
