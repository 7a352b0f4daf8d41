"""The native library: found, loaded once, and its version checked."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

from tokenweave.errors import NativeError

ABI_VERSION = 1


@cache
def load() -> ctypes.CDLL:
    """The native library, loaded on the first call.

    Raises:
        NativeError: it is missing, cannot be loaded here, or has another ABI version.
    """
    try:
        path = distribution("interlace").locate_file("tokenweave/libtokenweave.so")
        library = ctypes.CDLL(str(path))
    except (PackageNotFoundError, OSError) as error:
        raise NativeError(f"the native library cannot be loaded: {error}; reinstall the package") from error
    version = library.tw_abi_version()
    if version != ABI_VERSION:
        raise NativeError(
            f"got ABI version {version} in {path}; expected {ABI_VERSION}: rebuild it (make native)"
        )
    return library
