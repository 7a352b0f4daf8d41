"""What goes where: answers to standard output; errors, and progress at a terminal, to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH_WHEN_PIPED = 120
SPINNER_HZ = 4.0  # seldom: loading has better use for the cores


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

    with Console(stderr=True).status(message, refresh_per_second=SPINNER_HZ):
        yield


def show(*renderables: RenderableType) -> None:
    """Print tables and texts to standard output; without rich's padding at the ends of lines where it is piped."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(*renderables, sep="\n")
        return
    console = Console(width=WIDTH_WHEN_PIPED, highlight=False)
    with console.capture() as captured:
        console.print(*renderables, sep="\n")
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_json(value: Any) -> None:
    """Print `value` as the only JSON object of standard output."""
    print(json.dumps(value, ensure_ascii=False))


def megabytes(size_bytes: float) -> str:
    """Bytes in units of 1e6, or 1e9 from there on."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
