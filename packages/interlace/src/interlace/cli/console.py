"""Output of the command: answers to standard output; errors, and progress at a terminal, to standard error.

Most of it is emucxl's, whose command prints in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
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

SPINNER_HZ = 4.0  # seldom: loading has better use for the cores


@contextmanager
def working(message: str, shown: bool) -> Iterator[None]:
    """Shows a spinner beside `message` on standard error while the block runs."""
    if not shown:
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(message, refresh_per_second=SPINNER_HZ):
        yield
