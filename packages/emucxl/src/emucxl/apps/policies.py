"""Placement policies of the key-value store: which entries are local, and which one leaves when another one comes.

A policy orders the keys of each tier, head first. `KVStore` moves the bytes and tells the policy what it did; the
policy answers two questions: who would leave next, and whether an entry that was read in the remote tier is worth the
local tier to which it would have to be moved. Every call is O(1), amortised.

Invariant: `local` and `remote` together hold every key of the store, once.

Thread safety: one policy belongs to one store, which calls it under its lock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

from emucxl.errors import ArgumentError

Key = bytes


class Policy:
    """Base of the policies: a new entry goes to the local head; one that leaves goes to the remote head.

    A local entry that is read moves to the local head. Subclasses say what a read in the remote tier does.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    def __init__(self) -> None:
        self.local: OrderedDict[Key, None] = OrderedDict()
        self.remote: OrderedDict[Key, None] = OrderedDict()

    # ---- what a policy decides ------------------------------------------------------------------------------------

    def used(self, key: Key) -> None:
        """`key` is read, or its value replaced."""
        if key in self.local:
            self.local.move_to_end(key, last=False)

    def wants(self, key: Key) -> bool:
        """Whether `key`, just used and remote, should become local at all."""
        raise NotImplementedError

    def gives_way(self, victim: Key, key: Key) -> bool:
        """Whether the local `victim` may leave so that the remote `key` can come in its place."""
        return True

    def promoted(self, key: Key) -> None:
        """`key` was moved from the remote to the local tier."""
        del self.remote[key]
        self.local[key] = None
        self.local.move_to_end(key, last=False)

    def victim(self, keep: Key) -> Key | None:
        """The local entry other than `keep` that leaves next; None when there is none."""
        return next((key for key in reversed(self.local) if key != keep), None)

    # ---- bookkeeping, the same for all ----------------------------------------------------------------------------

    def inserted(self, key: Key, is_local: bool) -> None:
        """`key` is new."""
        order = self.local if is_local else self.remote
        order[key] = None
        order.move_to_end(key, last=False)

    def demoted(self, key: Key) -> None:
        """`key` was moved from the local to the remote tier."""
        del self.local[key]
        self.remote[key] = None
        self.remote.move_to_end(key, last=False)

    def returned(self, key: Key) -> None:
        """The latest `demoted`, of a victim, was taken back."""
        del self.remote[key]
        self.local[key] = None

    def removed(self, key: Key) -> None:
        """`key` is no more."""
        (self.local if key in self.local else self.remote).pop(key)

    def tells(self, key: Key, other: Policy) -> None:
        """`key` is about to go to another store, whose policy `other` learns how often it was used, if both count."""


class Leave(Policy):
    """Published: an entry that is read in the remote tier stays there."""

    name = "leave"
    summary = "published: what is remote stays remote"

    def wants(self, key: Key) -> bool:
        return False


class Promote(Policy):
    """Published: an entry that is read in the remote tier becomes local, at the *tail* of the local order.

    So it is the next to leave: unless it is read again before any other remote entry is, the move gained nothing.
    """

    name = "promote"
    summary = "published: a remote hit becomes local, at the tail: the next one takes its place"

    def wants(self, key: Key) -> bool:
        return True

    def promoted(self, key: Key) -> None:
        del self.remote[key]
        self.local[key] = None


class Lru(Policy):
    """An entry that is read in the remote tier becomes local, at the head: the local tier holds the latest read."""

    name = "lru"
    summary = "a remote hit becomes local, at the head (true MRU promotion)"

    def wants(self, key: Key) -> bool:
        return True


class TinyLfu(Policy):
    """LRU, but a remote entry takes the place of the local victim only when it has been read more often.

    This is the admission test of TinyLFU (Einziger, Friedman, Manes, ACM Transactions on Storage 13(4), 2017), which
    keeps one pass over cold entries from flushing the hot ones. Chosen over LFU proper because it needs no order by
    frequency (every call stays O(1)), and because favourites of the past can leave: all counts are halved each time
    the store has been used `reads_per_entry` times per entry (fewer: it follows a change sooner, and tells frequent
    from lucky less well). The counts are exact, one per entry, since the store has an index entry for each key
    anyway; TinyLFU's sketch is for caches that must count keys they don't hold.
    """

    name = "tinylfu"
    summary = "LRU, but a remote hit becomes local only if read more often than what would leave"

    def __init__(self, reads_per_entry: int = 2) -> None:
        if reads_per_entry < 1:
            raise ArgumentError(f"got reads_per_entry={reads_per_entry}; expected at least 1")
        super().__init__()
        self.counts: dict[Key, int] = {}
        self._reads_per_entry = reads_per_entry
        self._reads = 0

    def used(self, key: Key) -> None:
        super().used(key)
        self.counts[key] = self.counts.get(key, 0) + 1
        self._reads += 1
        if self._reads >= self._reads_per_entry * (len(self.local) + len(self.remote)):
            self._age()

    def wants(self, key: Key) -> bool:
        return True

    def gives_way(self, victim: Key, key: Key) -> bool:
        return self.counts.get(key, 0) > self.counts.get(victim, 0)

    def removed(self, key: Key) -> None:
        super().removed(key)
        self.counts.pop(key, None)

    def tells(self, key: Key, other: Policy) -> None:
        if isinstance(other, TinyLfu):
            other.counts[key] = other.counts.get(key, 0) + self.counts.get(key, 0)

    def _age(self) -> None:
        self.counts = {key: count // 2 for key, count in self.counts.items() if count > 1}
        self._reads = 0


POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Promote, Leave, Lru, TinyLfu)}


def make_policy(name: str) -> Policy:
    """A new policy by its name.

    Raises:
        ArgumentError: there is none of that name.
    """
    if name not in POLICIES:
        raise ArgumentError(f"got the policy {name!r}; expected one of {', '.join(POLICIES)}")
    return POLICIES[name]()
