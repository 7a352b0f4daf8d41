"""Progress of a download on standard error; silent when asked to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Shows bars, or with `quiet` nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    @contextmanager
    def bar(self, title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A bar while the block runs. Yields a function to call with the bytes that have arrived in all."""
        if self.quiet:
            yield lambda _done_bytes: None
            return
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
        )
        with progress.Progress(*columns, console=Console(stderr=True)) as display:
            task = display.add_task(title, total=total_bytes)
            yield lambda done_bytes: display.update(task, completed=min(done_bytes, total_bytes))
            display.update(task, completed=total_bytes)
