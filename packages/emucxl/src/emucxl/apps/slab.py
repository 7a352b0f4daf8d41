"""A slab allocator: objects of one size, carved from slabs of a tier's memory.

A slab is one `Buffer` with room for `objects_per_slab` objects. Allocation takes a free slot of a slab that has some,
and asks the tier for memory only when none has; freeing puts the slot back. Slabs that become empty go back to the
tier, except for `spare_slabs` of them, so that a load that swings around a slab's edge doesn't make and free slabs.
What the allocator knows about its slots lies in Python's own memory: allocating reads nothing from the tier.

Thread safety: one lock per allocator; calls from several threads take turns.

Invariants:
  1. A slot belongs to at most one live object. An object that was handed out is zero.
  2. Slabs are full, partial or empty; `alloc` prefers partial ones, so that empty ones stay empty.
  3. A call that raises leaves everything as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emucxl.errors import (
    ArgumentError,
    BadPointerError,
    ClosedError,
    CorruptError,
    InUseError,
    OutOfBoundsError,
)
from emucxl.locks import new_recursive_lock

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from emucxl.buffer import Buffer
    from emucxl.tiers import Tier

DEFAULT_SLAB_BYTES = 64 * 1024
_MIN_OBJECTS = 8  # of a default slab, whatever its objects' size


@dataclass(frozen=True)
class SlabStats:
    """Counts of an allocator's slabs and of its events."""

    num_objects: int  # live
    num_slots: int  # live objects and room for more
    num_slabs: int
    slab_bytes: int  # of one slab
    object_bytes: int
    total_allocations: int
    slabs_made: int
    slabs_returned: int


class SlabObject:
    """One object of a slab allocator, to be freed with `free`: dropping it keeps its slot taken."""

    __slots__ = ("_slab", "_slot")

    def __init__(self, slab: _Slab, slot: int) -> None:
        self._slab: _Slab | None = slab
        self._slot = slot

    @property
    def size_bytes(self) -> int:
        return self._live().owner.object_bytes

    @property
    def address(self) -> int:
        """The object's address; it never moves."""
        slab = self._live()
        return slab.buffer.address + slab.offset(self._slot)

    @property
    def freed(self) -> bool:
        return self._slab is None

    def read(self, size: int | None = None, offset: int = 0) -> bytes:
        """`size` bytes from `offset` on; absent: all that follow."""
        slab = self._live()
        size = slab.owner.object_bytes - offset if size is None else size
        return slab.buffer.read(size, self._at(slab, offset, size))

    def write(self, data: bytes, offset: int = 0) -> None:
        slab = self._live()
        slab.buffer.write(data, self._at(slab, offset, len(data)))

    def free(self) -> None:
        """Gives the object back.

        Raises:
            BadPointerError: it was freed before.
        """
        slab = self._slab
        if slab is None:
            raise BadPointerError("the object was freed before; free it once")
        slab.owner.free(self)

    def _live(self) -> _Slab:
        if self._slab is None:
            raise ClosedError("the object was freed")
        return self._slab

    def _at(self, slab: _Slab, offset: int, size_bytes: int) -> int:
        """Where a range of the object lies in its slab, checked against the object's own end."""
        if offset < 0 or size_bytes < 0 or offset + size_bytes > slab.owner.object_bytes:
            raise OutOfBoundsError(
                f"got {size_bytes} bytes at offset {offset}; the object has {slab.owner.object_bytes}"
            )
        return slab.offset(self._slot) + offset


class _Slab:
    """A buffer and its slots. Free ones: those in `free`, and all from `fresh` on, which were never used."""

    __slots__ = ("buffer", "free", "fresh", "live", "owner")

    def __init__(self, owner: SlabAllocator, buffer: Buffer) -> None:
        self.owner, self.buffer = owner, buffer
        self.free: list[int] = []
        self.fresh = 0
        self.live: dict[int, SlabObject] = {}

    @property
    def is_full(self) -> bool:
        return len(self.live) == self.owner.objects_per_slab

    def offset(self, slot: int) -> int:
        return slot * self.owner.stride_bytes

    def take(self) -> SlabObject:
        if self.free:
            slot = self.free[-1]
            self.buffer.fill(0, self.offset(slot), self.owner.object_bytes)
            self.free.pop()
        else:
            slot = self.fresh
            self.fresh += 1
        self.live[slot] = SlabObject(self, slot)
        return self.live[slot]

    def give(self, slot: int) -> None:
        del self.live[slot]
        self.free.append(slot)


class SlabAllocator:
    """Objects of `object_bytes` in `tier`. `alloc` and `free` are O(1).

    `alignment` is a power of two, at most 4096; slabs begin at a multiple of it.
    """

    def __init__(
        self,
        tier: Tier,
        object_bytes: int,
        slab_bytes: int | None = None,
        alignment: int = 16,
        spare_slabs: int = 1,
    ) -> None:
        if object_bytes < 1 or spare_slabs < 0:
            raise ArgumentError(
                f"got object_bytes={object_bytes}, spare_slabs={spare_slabs}; expected at least 1 and 0"
            )
        if alignment < 1 or alignment > 4096 or alignment & (alignment - 1):
            raise ArgumentError(f"got alignment={alignment}; expected a power of two up to 4096")
        self.tier, self.object_bytes, self.spare_slabs = tier, object_bytes, spare_slabs
        self.stride_bytes = -(-object_bytes // alignment) * alignment
        wanted_bytes = max(DEFAULT_SLAB_BYTES, _MIN_OBJECTS * self.stride_bytes)
        self.slab_bytes = wanted_bytes if slab_bytes is None else slab_bytes
        self.objects_per_slab = self.slab_bytes // self.stride_bytes
        if self.objects_per_slab < 1:
            raise ArgumentError(
                f"got slab_bytes={slab_bytes}; expected at least {self.stride_bytes}, one object"
            )
        self._alignment = alignment
        self._full: dict[_Slab, None] = {}  # ordered sets
        self._partial: dict[_Slab, None] = {}
        self._empty: dict[_Slab, None] = {}
        self._num_objects = self._total_allocations = self._made = self._returned = 0
        self._reserved_slabs = 0
        self._lock = new_recursive_lock()
        self._closed = False

    def alloc(self) -> SlabObject:
        """A zeroed object.

        Raises:
            TierFullError: every slab is full, and the tier has no room for another one.
        """
        with self._lock:
            self._check_open()
            slab = next(iter(self._partial), None) or next(iter(self._empty), None) or self._grow()
            taken = slab.take()
            self._file(slab)
            self._num_objects += 1
            self._total_allocations += 1
            return taken

    def free(self, taken: SlabObject) -> None:
        """Gives an object back.

        Raises:
            BadPointerError: it was freed before, or is another allocator's.
        """
        with self._lock:
            slab = taken._slab
            if slab is None or slab.owner is not self:
                raise BadPointerError(
                    "got an object that was freed, or is another allocator's; free each one once"
                )
            slab.give(taken._slot)
            taken._slab = None
            self._num_objects -= 1
            self._file(slab)
            if (
                not slab.live
                and len(self._empty) > self.spare_slabs
                and self._num_slabs() > self._reserved_slabs
            ):
                self._return(slab)

    def reserve(self, num_objects: int) -> None:
        """Makes room for that many objects in all, live ones included. It stays until `trim`.

        Raises:
            TierFullError: the tier has less room; what was gained is kept.
        """
        with self._lock:
            self._check_open()
            wanted_slabs = -(-num_objects // self.objects_per_slab)
            while self._num_slabs() < wanted_slabs:
                self._grow()
            self._reserved_slabs = max(self._reserved_slabs, wanted_slabs)

    def trim(self) -> int:
        """Gives every empty slab back to the tier, reserved ones too; how many."""
        with self._lock:
            self._reserved_slabs = 0
            empty = list(self._empty)
            for slab in empty:
                self._return(slab)
            return len(empty)

    def stats(self) -> SlabStats:
        with self._lock:
            return SlabStats(
                num_objects=self._num_objects,
                num_slots=self._num_slabs() * self.objects_per_slab,
                num_slabs=self._num_slabs(),
                slab_bytes=self.slab_bytes,
                object_bytes=self.object_bytes,
                total_allocations=self._total_allocations,
                slabs_made=self._made,
                slabs_returned=self._returned,
            )

    def check(self) -> None:
        """Every invariant. Raises CorruptError. Slow: for tests."""
        with self._lock:
            for slab in (*self._full, *self._partial, *self._empty):
                slots = sorted([*slab.live, *slab.free])
                if slots != list(range(slab.fresh)) or slab.fresh > self.objects_per_slab:
                    raise CorruptError("a slot is both live and free, or neither")
                if slab not in self._list_of(slab):
                    raise CorruptError(f"a slab with {len(slab.live)} live objects is in the wrong list")
            live = sum(len(slab.live) for slab in (*self._full, *self._partial))
            if live != self._num_objects:
                raise CorruptError(f"the slabs hold {live} objects; {self._num_objects} are booked")

    def close(self, force: bool = False) -> None:
        """Gives every slab back to the tier; a second call does nothing.

        Raises:
            InUseError: objects are live, and `force` was not given.
        """
        with self._lock:
            if self._num_objects and not force:
                raise InUseError(
                    f"{self._num_objects:,} objects are live; free them, or close with force=True"
                )
            self._closed = True
            for slab in (*self._full, *self._partial, *self._empty):
                for taken in slab.live.values():
                    taken._slab = None
                slab.buffer.free()
            self._full, self._partial, self._empty = {}, {}, {}
            self._num_objects = 0

    def __len__(self) -> int:
        return self._num_objects

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(force=True)

    def _grow(self) -> _Slab:
        slab = _Slab(self, self.tier.alloc(self.slab_bytes, self._alignment))
        self._empty[slab] = None
        self._made += 1
        return slab

    def _return(self, slab: _Slab) -> None:
        del self._empty[slab]
        slab.buffer.free()
        self._returned += 1

    def _file(self, slab: _Slab) -> None:
        """Puts a slab in the list that its number of live objects says."""
        for slabs in (self._full, self._partial, self._empty):
            if slab in slabs:
                if slabs is self._list_of(slab):
                    return
                del slabs[slab]
        self._list_of(slab)[slab] = None

    def _list_of(self, slab: _Slab) -> dict[_Slab, None]:
        if not slab.live:
            return self._empty
        return self._full if slab.is_full else self._partial

    def _num_slabs(self) -> int:
        return len(self._full) + len(self._partial) + len(self._empty)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the allocator is closed; make a new one")
