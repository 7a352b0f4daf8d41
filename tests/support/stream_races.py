"""Races of streams, found without a device: which operations of torch touch one memory and do not wait for each other.

`WatchedStreams` are those of a `StreamExecutor`, and know what is behind what (clocks of every lane, as vectors).
`Races` looks at each operation inside it. It raises where one touches memory that another stream may still be writing
or, to write it, reading; and where memory is given away that another stream may still be using: to torch's allocator a
tensor is free when the host lets go of it, and the next tensor of its stream may get its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenweave.plan import Lane

Clock = dict[Lane, int]  # how many operations of each lane are done


class WatchedStreams:
    """Streams that do nothing but know, of each lane, what is done before what it does next. Events are clocks."""

    def __init__(self) -> None:
        self.clocks: dict[Lane, Clock] = {lane: {} for lane in Lane}
        self.inside = Lane.COMPUTE

    def stream(self, lane: Lane) -> Lane:
        return lane

    @contextmanager
    def on(self, stream: Lane) -> Iterator[None]:
        self.inside = stream
        try:
            yield
        finally:
            self.inside = Lane.COMPUTE

    def record(self, stream: Lane) -> Clock:
        return dict(self.clocks[stream])

    def wait(self, stream: Lane, event: Clock) -> None:
        own = self.clocks[stream]
        for lane, count in event.items():
            own[lane] = max(own.get(lane, 0), count)

    def mark(self) -> Clock:
        return self.record(self.inside)

    def has_happened(self, event: Clock) -> bool:
        return True

    def wait_until(self, event: Clock) -> None:
        """Nothing is ever behind."""

    def seconds(self, first: Clock, second: Clock) -> float:
        return 0.0

    def tick(self) -> int:
        """Counts an operation on the stream where work goes."""
        own = self.clocks[self.inside]
        own[self.inside] = own.get(self.inside, 0) + 1
        return own[self.inside]

    def is_behind(self, touched: Clock) -> bool:
        """Whether the stream where work goes has all of `touched` before it."""
        own = self.clocks[self.inside]
        return all(own.get(lane, 0) >= count for lane, count in touched.items())


@dataclass
class _Memory:
    """The storage of some tensors, and the last operation of each lane that touched it."""

    alive: StorageWeakRef
    owner: Lane | None  # where it was allocated; None: before anybody looked
    written: Clock = field(default_factory=dict)  # by the last operation that did
    read: Clock = field(default_factory=dict)
    by: str = ""  # the last operation


class Races(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises AssertionError at the first race between streams."""

    def __init__(self, streams: WatchedStreams) -> None:
        super().__init__()
        self.num_touched = 0  # times that memory was touched which another lane had touched
        self._streams = streams
        self._memory: dict[int, _Memory] = {}
        self._given_away: list[_Memory] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler for that: seconds, for what never compiles."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = function(*args, **(kwargs or {}))
        name, schema = function.overloadpacket.__name__, function._schema
        if any(each.alias_info is not None and not each.alias_info.is_write for each in schema.returns):
            return given  # a view: it touches nothing
        now = self._streams.tick()
        written, read = [], []
        for position, argument in enumerate(schema.arguments):
            value = args[position] if position < len(args) else (kwargs or {}).get(argument.name)
            is_write = argument.alias_info is not None and argument.alias_info.is_write
            (written if is_write else read).extend(_tensors(value))
        for tensor in read:
            self._touch(tensor, name, now, is_write=False)
        for tensor in [*written, *_tensors(given)]:
            self._touch(tensor, name, now, is_write=True)
        return given

    def _touch(self, tensor: Tensor, name: str, now: int, is_write: bool) -> None:
        memory, streams = self._memory_of(tensor, name, is_write), self._streams
        self.num_touched += any(lane is not streams.inside for lane in {**memory.written, **memory.read})
        assert streams.is_behind(memory.written), f"{name} does not wait for {memory.by}, which writes it"
        assert not is_write or streams.is_behind(memory.read), (
            f"{name} writes what {memory.by} may still be reading"
        )
        memory.by = f"{name} on {streams.inside}"
        if is_write:
            memory.written, memory.read = (
                {streams.inside: now},
                {},
            )  # what read it before is behind the writer
        else:
            memory.read[streams.inside] = now

    def _memory_of(self, tensor: Tensor, name: str, is_write: bool) -> _Memory:
        alive = StorageWeakRef(tensor.untyped_storage())
        if alive.cdata not in self._memory:
            self._allocate(name)
            owner = self._streams.inside if is_write else None
            self._memory[alive.cdata] = _Memory(alive, owner)
        return self._memory[alive.cdata]

    def _allocate(self, name: str) -> None:
        """Of what was let go, any may be the memory that a new tensor of its stream gets."""
        for key in [key for key, memory in self._memory.items() if memory.alive.expired()]:
            self._given_away.append(self._memory.pop(key))
        kept = []
        for memory in self._given_away:
            if memory.owner is self._streams.inside:
                is_free = self._streams.is_behind({**memory.written, **memory.read})
                assert is_free, f"{name} may get memory that {memory.by} may still be using"
            elif memory.owner is not None:
                kept.append(memory)
        self._given_away = kept


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
