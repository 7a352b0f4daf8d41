"""Objects of a pool: each has a native handle in a cell, and an end. A host knows its pool; a pool lists its hosts."""

from __future__ import annotations

import contextlib
from pathlib import Path

from emucxl import errors
from emucxl.closing import WithBlock
from emucxl.pool.cells import Cell


class PoolObject(WithBlock):
    """Base of a pool, a host and a region: each has a cell, and an end."""

    _cell: Cell

    @property
    def closed(self) -> bool:
        return self._cell.closed

    def __del__(self) -> None:
        if getattr(self, "_cell", None) is None:  # the constructor failed
            return
        with contextlib.suppress(
            errors.InUseError
        ):  # a thread is inside a call; the process's end will be noticed
            self.close()


class HostCells:
    """A host's cell and those of its regions, which end with it."""

    def __init__(self, host: Cell) -> None:
        self.host = host
        self.regions: list[Cell] = []

    def all(self) -> list[Cell]:
        self.regions = [cell for cell in self.regions if not cell.closed]
        return [*self.regions, self.host]


class OpenPool(PoolObject):
    """The part of a pool that its hosts use: its path, and the list of hosts that leave when it is closed."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.hosts_here: list[HostCells] = []
        self._cell = Cell(f"the pool {path}", handle)
