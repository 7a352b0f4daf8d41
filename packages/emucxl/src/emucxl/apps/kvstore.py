"""A key-value store over two tiers: entries come in locally, and what does not fit moves to the remote tier.

Keys and values are bytes of any size; an entry is one `Buffer` that holds its key and its value. The index that finds
an entry by its key is a dict in Python's own memory: the timing model prices the entries, not the index.

Thread safety: one lock per store; calls from several threads take turns.

Invariants:
  1. Nothing is lost: an entry leaves the store by `delete`, `close` or a newer value, and in no other way.
  2. Neither tier holds more entries or bytes of the store than its limit.
  3. A call that raises leaves every key with the value it had, and every entry in the tier where it was.
Only somebody else who fills the local tier in the middle of a call can bend 2 and 3: entries that had made room for
another one and can't come back then stay remote, above the limit if need be. Nothing is lost then, either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from emucxl.apps.kv_side import Entry, Limit, Side
from emucxl.apps.policies import Key, Policy, make_policy
from emucxl.errors import ArgumentError, CapacityError, ClosedError, CorruptError
from emucxl.locks import new_recursive_lock

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from _typeshed import ReadableBuffer

    from emucxl.buffer import Buffer
    from emucxl.tiers import Tier

T = TypeVar("T")

__all__ = ["KVStats", "KVStore", "Limit"]


@dataclass(frozen=True)
class KVStats:
    """Counts of a store's entries and of its events."""

    local_entries: int
    remote_entries: int
    local_bytes: int
    remote_bytes: int
    local_hits: int
    remote_hits: int
    misses: int
    promotions: int  # remote to local
    evictions: int  # local to remote

    @property
    def local_fraction(self) -> float:
        """The share of local reads among those that found their key; 0 before the first."""
        found = self.local_hits + self.remote_hits
        return self.local_hits / found if found else 0.0


class _Refused(Exception):
    """The policy would rather keep the victim."""


class KVStore:
    """Bytes by key, over a `local` and a `remote` tier.

    `put` places an entry locally; where that is full, the policy's victims move to the remote tier first. `get` finds
    it in either tier, and may move it, as the policy says (`emucxl.apps.policies`). An entry that the local tier could
    never hold goes to the remote tier at once.
    """

    def __init__(
        self,
        local: Tier,
        remote: Tier,
        policy: Policy | str = "lru",
        local_limit: Limit | None = None,
        remote_limit: Limit | None = None,
    ) -> None:
        self._policy = make_policy(policy) if isinstance(policy, str) else policy
        if self._policy.local or self._policy.remote:
            raise ArgumentError(
                "the policy orders another store's entries; give each store a policy of its own"
            )
        self._local, self._remote = Side(local, local_limit or Limit()), Side(remote, remote_limit or Limit())
        self._index: dict[Key, Entry] = {}
        self._local_hits = self._remote_hits = self._misses = self._promotions = self._evictions = 0
        self._lock = new_recursive_lock()
        self._closed = False

    # ---- the store ------------------------------------------------------------------------------------------------

    def put(self, key: ReadableBuffer, value: ReadableBuffer) -> None:
        """Sets the value of `key`.

        Raises:
            CapacityError: it does not fit, or what would have to make room for it does not; nothing has changed.
        """
        name, data = _bytes_of("key", key), _bytes_of("value", value)
        with self._lock:
            self._check_open()
            entry = self._index.get(name)
            if entry is None:
                self._insert(name, data)
            else:
                self._replace(name, entry, data)

    def get(self, key: ReadableBuffer) -> bytes | None:
        """The value of `key`, or None."""
        name = _bytes_of("key", key)
        with self._lock:
            self._check_open()
            entry = self._index.get(name)
            if entry is None:
                self._misses += 1
                return None
            self._policy.used(name)
            if entry.side is self._local:
                value = entry.value()
                self._local_hits += 1
            else:
                self._promote(name, entry)
                value = entry.value()
                self._remote_hits += 1
            return value

    def delete(self, key: ReadableBuffer) -> bool:
        """Forgets `key`; whether it was there."""
        name = _bytes_of("key", key)
        with self._lock:
            self._check_open()
            entry = self._index.pop(name, None)
            if entry is None:
                return False
            self._policy.removed(name)
            entry.side.remove(entry)
            entry.buffer.free()
            return True

    def tier_of(self, key: ReadableBuffer) -> Tier | None:
        """Where the entry of `key` is now, or None."""
        entry = self._index.get(_bytes_of("key", key))
        return None if entry is None else entry.side.tier

    def local_keys(self) -> list[bytes]:
        """The keys in the local tier, in the policy's order: the last one is the next to leave."""
        with self._lock:
            return list(self._policy.local)

    def remote_keys(self) -> list[bytes]:
        """The keys in the remote tier: the one that left the local tier last comes first."""
        with self._lock:
            return list(self._policy.remote)

    def stats(self) -> KVStats:
        with self._lock:
            return KVStats(
                local_entries=self._local.entries,
                remote_entries=self._remote.entries,
                local_bytes=self._local.size_bytes,
                remote_bytes=self._remote.size_bytes,
                local_hits=self._local_hits,
                remote_hits=self._remote_hits,
                misses=self._misses,
                promotions=self._promotions,
                evictions=self._evictions,
            )

    def check(self) -> None:
        """Every invariant, and the keys in the tiers' memory against the index. Slow: for tests.

        Raises:
            CorruptError: names the first that does not hold.
        """
        with self._lock:
            for side, order in ((self._local, self._policy.local), (self._remote, self._policy.remote)):
                held = {key: entry for key, entry in self._index.items() if entry.side is side}
                if held.keys() != order.keys():
                    raise CorruptError(
                        f"tier {side.tier.name!r}: the policy's keys are not those of the index"
                    )
                side.check(held)

    def close(self) -> None:
        """Frees every entry; a second call does nothing."""
        with self._lock:
            self._closed = True
            while self._index:
                key, entry = self._index.popitem()
                self._policy.removed(key)
                entry.side.remove(entry)
                entry.buffer.free()

    def __contains__(self, key: ReadableBuffer) -> bool:
        return _bytes_of("key", key) in self._index

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[bytes]:
        """The keys as of now, oldest first."""
        with self._lock:
            return iter(list(self._index))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- moves ----------------------------------------------------------------------------------------------------

    def _insert(self, key: Key, value: bytes) -> None:
        data = key + value
        if self._local.could_hold(len(data)):
            side, buffer = self._local, self._make_room(lambda: _filled(self._local, data), key, len(data))
        else:
            side, buffer = self._remote, self._filled_remote(data)
        self._index[key] = side.add(Entry(buffer, len(key), len(data), side))
        self._policy.inserted(key, is_local=side is self._local)

    def _replace(self, key: Key, entry: Entry, value: bytes) -> None:
        self._policy.used(key)
        wanted = self._wanted_side(key, entry, len(key) + len(value))
        if wanted is entry.side and len(value) == entry.value_bytes:
            entry.buffer.write(value, entry.key_bytes)
            return
        data = key + value
        if wanted is self._local:
            side, buffer = self._refilled(key, entry, data)
        else:
            side, buffer = self._remote, self._filled_remote(data, entry)
        old = entry.buffer
        self._settle(key, entry, side)
        entry.resize(buffer, len(data))
        old.free()

    def _wanted_side(self, key: Key, entry: Entry, size_bytes: int) -> Side:
        """Where a newer value of `entry` should go."""
        is_wanted = entry.side is self._local or self._policy.wants(key)
        return self._local if is_wanted and self._local.could_hold(size_bytes) else self._remote

    def _refilled(self, key: Key, entry: Entry, data: bytes) -> tuple[Side, Buffer]:
        """`data` in local memory; in remote memory if `entry` was there and the policy or the room denies the move."""
        try:
            return self._local, self._make_room(lambda: _filled(self._local, data), key, len(data), entry)
        except (CapacityError, _Refused):
            if entry.side is self._local:
                raise
        return self._remote, self._filled_remote(data, entry)

    def _filled_remote(self, data: bytes, leaving: Entry | None = None) -> Buffer:
        if not self._remote.fits(len(data), leaving):
            raise self._remote.full(len(data))
        return _filled(self._remote, data)

    def _promote(self, key: Key, entry: Entry) -> None:
        """Moves a remote entry to the local tier, if the policy wants it there and everything has room."""
        if not (self._policy.wants(key) and self._local.could_hold(entry.size_bytes)):
            return
        with suppress(CapacityError, _Refused):
            self._make_room(lambda: entry.buffer.migrate(self._local.tier), key, entry.size_bytes, entry)
            self._settle(key, entry, self._local)

    def _settle(self, key: Key, entry: Entry, side: Side) -> None:
        """Books that `entry` is now on `side`."""
        if side is entry.side:
            return
        entry.side.remove(entry)
        side.add(entry)
        if side is self._local:
            self._policy.promoted(key)
            self._promotions += 1
        else:
            self._policy.demoted(key)
            self._evictions += 1

    def _make_room(self, act: Callable[[], T], key: Key, size_bytes: int, leaving: Entry | None = None) -> T:
        """`act()`, which takes `size_bytes` of local room for `key`, after evicting what is in its way.

        `leaving` is the entry of `key` that this will replace. Takes the evictions back when it raises.
        """
        evicted: list[Key] = []
        try:
            while True:
                if self._local.fits(size_bytes, leaving):
                    with suppress(CapacityError):
                        return act()
                evicted.append(self._evict(key, size_bytes, leaving))
        except BaseException:
            for victim in reversed(evicted):
                self._take_back(victim)
            raise

    def _evict(self, key: Key, size_bytes: int, leaving: Entry | None) -> Key:
        victim = self._policy.victim(keep=key)
        if victim is None:
            raise self._local.full(size_bytes)
        entry = self._index[victim]
        if leaving is not None and leaving.side is self._remote and not self._policy.gives_way(victim, key):
            raise _Refused
        if not self._remote.fits(entry.size_bytes, leaving):
            raise self._remote.full(entry.size_bytes)
        entry.buffer.migrate(self._remote.tier)
        self._settle(victim, entry, self._remote)
        return victim

    def _take_back(self, key: Key) -> None:
        entry = self._index[key]
        with suppress(CapacityError):  # somebody else has taken the room: it stays remote, and is not lost
            entry.buffer.migrate(self._local.tier)
            entry.side.remove(entry)
            self._local.add(entry)
            self._policy.returned(key)
            self._evictions -= 1

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the store is closed; make a new one")


def _filled(side: Side, data: bytes) -> Buffer:
    """A new buffer with `data`; where that cannot be written, none."""
    buffer = side.tier.alloc(max(1, len(data)))  # an empty key may have an empty value
    try:
        buffer.write(data)
    except BaseException:
        buffer.free()
        raise
    return buffer


def _bytes_of(what: str, value: ReadableBuffer) -> bytes:
    if type(value) is bytes:
        return value
    try:
        return bytes(memoryview(value))
    except TypeError:
        raise ArgumentError(
            f"got a {what} of type {type(value).__name__}; expected bytes (encode text first)"
        ) from None
