"""The file of a trace: written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tokenweave.errors import TraceError


def check_writable(path: Path) -> None:
    """Whether a trace could be written to `path`, before a long run is recorded in vain.

    Raises:
        TraceError: it could not.
    """
    if path.is_dir():
        raise TraceError(f"cannot write the trace to {path}: it is a directory; name a file")
    if not path.parent.is_dir() or (_is_replaceable(path) and not os.access(path.parent, os.W_OK)):
        raise TraceError(f"cannot write the trace to {path}: {path.parent} is no directory to write to")


def write_whole(path: Path, text: str) -> None:
    """Writes the file, whole or not at all. A link, a device or a pipe stays what it is, and is written to.

    Raises:
        TraceError: it cannot be written.
    """
    try:
        if _is_replaceable(path):
            _replace(path, text)
        else:
            path.write_text(text)
    except OSError as error:
        raise TraceError(f"cannot write the trace to {path}: {error.strerror or error}") from error


def _is_replaceable(path: Path) -> bool:
    """Whether another file may take its place: root could replace /dev/null and /dev/stdout for all programs."""
    return not path.is_symlink() and (path.is_file() or not path.exists())


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
