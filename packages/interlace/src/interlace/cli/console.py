"""Output of the command: answers to standard output; errors, and progress at a terminal, to standard error.

Most of it is emucxl's, whose command prints in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from emucxl.cli.console import (
    cpu_quota,
    is_progress_shown,
    megabytes,
    memory_limit,
    progress,
    short_path,
    show,
    show_error,
    show_json,
)

__all__ = [
    "cpu_quota",
    "is_progress_shown",
    "megabytes",
    "memory_limit",
    "progress",
    "short_path",
    "show",
    "show_error",
    "show_json",
    "working",
]

PROGRESS = logging.getLogger("interlace.progress")  # where an engine says how far it has come in starting
SPINNER_HZ = 4.0  # seldom: loading has better use for the cores


@contextmanager
def working(message: str, shown: bool) -> Iterator[None]:
    """Shows a spinner beside `message` on standard error while the block runs, and what is logged as progress."""
    if not shown:
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(message, refresh_per_second=SPINNER_HZ) as status:
        handler, level = _Told(lambda progress: status.update(f"{message}: {progress}")), PROGRESS.level
        PROGRESS.addHandler(handler)
        PROGRESS.setLevel(logging.INFO)
        try:
            yield
        finally:
            PROGRESS.setLevel(level)
            PROGRESS.removeHandler(handler)


class _Told(logging.Handler):
    """Calls `tell` with each message."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())
