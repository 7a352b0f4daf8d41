"""What goes where: answers to standard output; errors, and progress at a terminal, to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH_WHEN_PIPED = 120


def show_error(error: BaseException) -> None:
    """One line, whatever the message."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def is_progress_shown() -> bool:
    return sys.stderr.isatty()


@contextmanager
def working(message: str, shown: bool) -> Iterator[None]:
    """A spinner beside `message` on standard error while the block runs."""
    if not shown:
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(message):
        yield


def show(*renderables: RenderableType) -> None:
    """Print tables and texts to standard output."""
    console = stdout_console()
    for renderable in renderables:
        console.print(renderable)


def stdout_console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH_WHEN_PIPED
    return Console(width=width, highlight=False, soft_wrap=False)


def show_json(value: Any) -> None:
    """Print `value` as the only JSON object of standard output."""
    print(json.dumps(value, ensure_ascii=False))


def megabytes(size_bytes: float) -> str:
    """Bytes in units of 1e6, or 1e9 from there on."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
