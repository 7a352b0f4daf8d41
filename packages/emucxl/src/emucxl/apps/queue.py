"""A first-in first-out queue of byte strings: linked nodes in the memory of one tier, or of two.

A node is one `Buffer`: the address of the next node (8 bytes, 0 for none), then the value. Its link is read from the
tier's memory, so that walking the queue costs what the tier's timing says.

Thread safety: one lock per queue; calls from several threads take turns.

Invariant: a call that raises leaves the queue as it was.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from emucxl.errors import CapacityError, ClosedError, CorruptError, NotFoundError
from emucxl.locks import new_recursive_lock

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from emucxl.buffer import Buffer
    from emucxl.tiers import Tier

_LINK = struct.Struct("=Q")
_END = _LINK.pack(0)


class Queue:
    """Values come out in the order in which they went in. `enqueue` and `dequeue` are O(1).

    Nodes lie in `tier`; with an `overflow` tier they go there while `tier` is full, and the order stays what it was.
    """

    def __init__(self, tier: Tier, overflow: Tier | None = None) -> None:
        self._tiers = (tier,) if overflow is None else (tier, overflow)
        self._nodes: dict[int, Buffer] = {}  # by address, which is what a link holds
        self._front = self._rear = 0
        self._lock = new_recursive_lock()
        self._closed = False

    def enqueue(self, value: bytes) -> None:
        """Puts `value` last.

        Raises:
            CapacityError: no tier has room for it.
        """
        with self._lock:
            self._check_open()
            node = self._allocate(_LINK.size + len(value))
            try:
                node.write(_END + value)
                if self._rear:
                    self._nodes[self._rear].write(_LINK.pack(node.address))
            except BaseException:
                node.free()
                raise
            self._nodes[node.address] = node
            self._rear = node.address
            self._front = self._front or node.address

    def dequeue(self) -> bytes:
        """Takes the first value out.

        Raises:
            NotFoundError: the queue is empty.
        """
        with self._lock:
            following, value = self._read(self._first())
            self._nodes.pop(self._front).free()
            self._front = following
            self._rear = self._rear if following else 0
            return value

    def peek(self) -> bytes:
        """The first value, which stays. Raises NotFoundError if there is none."""
        with self._lock:
            return self._read(self._first())[1]

    def clear(self) -> None:
        """Drops every value."""
        with self._lock:
            self._front = self._rear = 0
            while self._nodes:
                self._nodes.popitem()[1].free()

    def close(self) -> None:
        """Drops every value; the queue can not be used any more. A second call does nothing."""
        with self._lock:
            self.clear()
            self._closed = True

    def check(self) -> None:
        """Checks that the links in the tiers' memory join every node once. Raises CorruptError. Slow: for tests."""
        with self._lock:
            seen, last, address = 0, 0, self._front
            while address and seen <= len(self._nodes):
                if address not in self._nodes:
                    raise CorruptError(f"node {seen} of the queue is at {address:#x}, where there is none")
                seen, last = seen + 1, address
                address = self._read(self._nodes[address])[0]
            if (seen, last) != (len(self._nodes), self._rear):
                raise CorruptError(
                    f"the links join {seen} nodes of {len(self._nodes)}, the last at {last:#x}"
                )

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[bytes]:
        """The values as of now, first one first, read through the links."""
        with self._lock:
            values: list[bytes] = []
            address = self._front
            while address:
                address, value = self._read(self._nodes[address])
                values.append(value)
        return iter(values)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _allocate(self, size_bytes: int) -> Buffer:
        for tier in self._tiers[:-1]:
            try:
                return tier.alloc(size_bytes)
            except CapacityError:
                continue
        return self._tiers[-1].alloc(size_bytes)

    def _first(self) -> Buffer:
        self._check_open()
        if not self._front:
            raise NotFoundError("the queue is empty")
        return self._nodes[self._front]

    @staticmethod
    def _read(node: Buffer) -> tuple[int, bytes]:
        """The address of the next node, and the value."""
        content = node.read()
        return _LINK.unpack_from(content)[0], content[_LINK.size :]

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the queue is closed; make a new one")
