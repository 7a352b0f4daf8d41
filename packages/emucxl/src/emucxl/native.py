"""The native core: finding it, loading it, and turning its status codes into exceptions.

Each module that wraps a part of the core declares the signatures of that part's calls with `declare`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from emucxl import errors
from emucxl.environment import library_override

ABI_VERSION = 1

# In the order of emx_status (native/include/emucxl/status.h).
EXCEPTIONS: tuple[type[errors.EmucxlError] | None, ...] = (
    None,
    errors.ArgumentError,
    errors.BadPointerError,
    errors.OutOfBoundsError,
    errors.TierFullError,
    errors.SystemMemoryError,
    errors.UnavailableError,
    errors.WaitTimeout,
    errors.InUseError,
    errors.PoisonedError,
    errors.FencedError,
    errors.QuotaError,
    errors.PoolFullError,
    errors.NameTakenError,
    errors.NotFoundError,
    errors.CorruptError,
    errors.ForeignError,
    errors.AccessDeniedError,
    errors.TooFastError,
    errors.ClosedError,
    errors.SystemCallError,
    errors.CancelledError,
)

Signatures = dict[str, tuple[Any, list[Any]]]


def library_path() -> Path:
    """Where the library is: EMUCXL_LIBRARY, or as installed (the distribution knows, for editable installs too)."""
    override = library_override()
    if override is not None:
        return override
    return installed_library("emucxl", Path(__file__).with_name("libemucxl.so"))


def installed_library(distribution: str, beside: Path) -> Path:
    """`beside`, a library next to its package, or where the distribution keeps it, as editable installs do."""
    try:
        files = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return beside
    installed = Path(str(files.locate_file(f"{beside.parent.name}/{beside.name}")))
    return installed if installed.exists() else beside


@cache
def load() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        UnavailableError: it cannot be loaded, or is of another version.
    """
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise errors.UnavailableError(
            f"cannot load the native core {path}: {error}; reinstall the package"
        ) from error
    declare(
        library,
        {
            "emx_abi_version": (ctypes.c_uint32, []),
            "emx_error_detail": (ctypes.c_char_p, []),
            "emx_status_text": (ctypes.c_char_p, [ctypes.c_int]),
        },
    )
    version = library.emx_abi_version()
    if version != ABI_VERSION:
        raise errors.UnavailableError(
            f"{path} has ABI version {version}, expected {ABI_VERSION}; rebuild it with `make native`"
        )
    return library


def declare(library: ctypes.CDLL, signatures: Signatures) -> None:
    """Sets the result and argument types of calls, so that ctypes checks and converts what is passed."""
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def check(status: int) -> None:
    """Raises the exception that `status` stands for, with the core's own words; returns for EMX_OK.

    To be called in the thread that made the call, before it makes another one.
    """
    if status:
        raise error_of(status)


def error_of(status: int) -> errors.EmucxlError:
    """The exception that a status other than EMX_OK stands for."""
    library = load()
    detail = (library.emx_error_detail() or b"").decode(errors="replace")
    text: str = detail or library.emx_status_text(status).decode()
    kind = EXCEPTIONS[status] if 0 < status < len(EXCEPTIONS) else errors.SystemCallError
    return (kind or errors.SystemCallError)(text)


def unavailable_reason() -> str | None:
    """Why the native core cannot be used here, or None if it can."""
    try:
        load()
    except errors.UnavailableError as error:
        return str(error)
    return None
