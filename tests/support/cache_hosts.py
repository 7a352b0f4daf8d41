"""Hosts of one memory, each with a cache of its own before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from emucxl.coherence import Cache
from emucxl.shared_memory import SharedSegment


@contextmanager
def hosts(segment: SharedSegment, count: int = 2, **options: object) -> Iterator[list[Cache]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Cache(segment, **options)) for _ in range(count)]  # type: ignore[arg-type]
