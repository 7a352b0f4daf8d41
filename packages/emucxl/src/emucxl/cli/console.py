"""Answers go to standard output; errors, and progress at a terminal, to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emucxl.cli import streams
from emucxl.cli.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH_WHEN_PIPED = 120


def show_error(error: BaseException) -> None:
    """One line, whatever the message."""
    print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)


def is_progress_shown() -> bool:
    return sys.stderr.isatty()


@contextmanager
def progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error, at a terminal; the block tells it the fraction that is done, and what it does now."""
    if not is_progress_shown():
        yield lambda fraction, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(title, total=1.0, what="")
        yield lambda fraction, what: display.update(task, completed=fraction, what=what)


def show(*renderables: RenderableType, width: int = WIDTH_WHEN_PIPED) -> None:
    """Print tables and texts to standard output.

    Where it is piped, they have that width, and lines end without rich's padding.
    """
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(*renderables, sep="\n")
        return
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(*renderables, sep="\n")
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_json(value: Any) -> None:
    """Print `value` as the only JSON object of standard output, escaped where a terminal might obey it."""
    text = json.dumps(value, ensure_ascii=False)
    print(text if text.isprintable() and streams.can_write(text) else json.dumps(value))


def megabytes(size_bytes: float) -> str:
    """Bytes in units of 1e6; 1e9 from there on, and 1e3 for less than a tenth of the first."""
    if 0 < size_bytes < 1e5:
        return f"{size_bytes / 1e3:.1f} KB"
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def cpu_quota(cores: float | None, group: str, num_threads: int) -> str:
    """Says in words how much of the processors' time a cgroup grants."""
    if cores is None:
        return "none"
    return f"{cores:g} cores, by {group}: {num_threads} {'thread computes' if num_threads == 1 else 'threads compute'}"


def memory_limit(limit_bytes: int | None, group: str) -> str:
    """Says in words how much memory a cgroup grants."""
    return "none" if limit_bytes is None else f"{megabytes(limit_bytes)}, by {group}"


def short_path(path: str) -> str:
    """From the current directory, or from the home directory, where it lies there."""
    for directory, name in ((Path.cwd, "."), (Path.home, "~")):
        with suppress(OSError, RuntimeError):  # it is gone, or there is none
            if Path(path).is_relative_to(parent := directory()):
                return f"{name}{os.sep}{Path(path).relative_to(parent)}"
    return path
