"""Handles of the core that end only while nobody uses them."""

from __future__ import annotations

from emucxl import errors
from emucxl.locks import new_recursive_lock


class Cell:
    """A handle of the core, counted: nobody ends it while it is in use. `with cell as handle` is one use."""

    def __init__(self, what: str, handle: int) -> None:
        self._what = what
        self._handle: int | None = handle
        self._num_users = 0
        self._lock = new_recursive_lock()  # a view may be collected, and so end its use, anywhere

    def __enter__(self) -> int:
        with self._lock:
            if self._handle is None:
                raise errors.ClosedError(f"{self._what} is closed")
            self._num_users += 1
            return self._handle

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._num_users -= 1

    @property
    def closed(self) -> bool:
        return self._handle is None

    def take(self) -> int | None:
        """The handle, which is nobody else's from now on; None if it was taken before.

        Raises:
            InUseError: it is in use.
        """
        with self._lock:
            if self._num_users:
                raise errors.InUseError(
                    f"{self._what} is in use by a view, a tier or another thread; let go of it first"
                )
            handle, self._handle = self._handle, None
            return handle

    def put_back(self, handle: int | None) -> None:
        with self._lock:
            self._handle = handle


class Use:
    """One use of a cell that lasts as long as this object.

    It keeps the cell's owner: one that nobody else has any more is closed as the last use ends, and not before, when it
    could not be.
    """

    def __init__(self, cell: Cell, owner: object) -> None:
        self._cell: Cell | None = None
        self._owner: object = None
        self.handle = cell.__enter__()
        self._cell, self._owner = cell, owner

    def end(self) -> None:
        cell, self._cell = self._cell, None
        if cell is not None:
            cell.__exit__()
        self._owner = None

    __del__ = end


def take_all(cells: list[Cell], last: Cell) -> int | None:
    """Takes the handles of `cells` and `last`, or none of them; gives that of `last`."""
    taken: list[tuple[Cell, int | None]] = []
    try:
        for cell in [*cells, last]:
            taken.append((cell, cell.take()))  # noqa: PERF401 (what was taken is needed where one fails)
    except errors.InUseError:
        for cell, handle in taken:
            cell.put_back(handle)
        raise
    return taken[-1][1]
