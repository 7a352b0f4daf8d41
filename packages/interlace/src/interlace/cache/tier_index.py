"""TierIndex: which blocks the tiers below the KV cache hold, by name, and in which slots.

A name is in one tier at a time, and may be in local memory too. What leaves a tier goes to the next one below it, if it
finds room there, and is lost below the last. Which name leaves is for a policy of `emucxl.apps.policies` to say: there
is one for each tier.

Invariants (`check` verifies 1)
1. A slot of a tier is free or has one name; `_places` and `_names` are each other's inverse.
2. A pinned name does not leave: a pass that is being planned reads or writes it.

Thread safety: none; it belongs to the scheduler's thread. Every call costs O(1) for each name and tier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from emucxl.apps.policies import POLICIES, Policy
from interlace.errors import EngineError

POLICY_NAMES = ("lru", "tinylfu")


class Place(NamedTuple):
    """A slot of a tier; tiers count from 0, the one at the top."""

    tier: int
    slot: int


class Descent(NamedTuple):
    """A name goes down from one slot to another, before anything is written in its place."""

    source: Place
    destination: Place


@dataclass
class _Tier:
    policy: Policy
    free: list[int]
    names: dict[int, bytes] = field(default_factory=dict)  # by slot


class TierIndex:
    """Names in a row of tiers that have `capacities` slots each."""

    def __init__(self, capacities: Sequence[int], policy: str = "lru") -> None:
        """Raises EngineError for a policy that is none of POLICY_NAMES."""
        if policy not in POLICY_NAMES:
            raise EngineError(f"got kv_tier_policy={policy!r}: expected one of {', '.join(POLICY_NAMES)}")
        self._tiers = [
            _Tier(POLICIES[policy](), list(range(capacity - 1, -1, -1))) for capacity in capacities
        ]
        self._places: dict[bytes, Place] = {}
        self._pinned: set[bytes] = set()

    def __len__(self) -> int:
        """How many names it holds."""
        return len(self._places)

    def find(self, name: bytes) -> Place | None:
        """The slot that has `name`."""
        return self._places.get(name)

    def num_held(self, tier: int) -> int:
        """Names in a tier."""
        return len(self._tiers[tier].names)

    def touch(self, names: Iterable[bytes]) -> None:
        """The blocks of a text were used; `names` are in its order. Of one text its last block leaves first."""
        for name in reversed([*names]):
            place = self._places.get(name)
            if place is not None:
                self._tiers[place.tier].policy.used(name)

    def pin(self, name: bytes) -> None:
        """Keeps `name` where it is until `unpin_all`."""
        self._pinned.add(name)

    def unpin_all(self) -> None:
        self._pinned.clear()

    def put(self, name: bytes) -> tuple[Place, list[Descent]] | None:
        """Takes `name` into the highest tier that has room for it, from a lower one if it is there.

        Returns where it is from now on, and what has to go down before that is written, in this order; None, changing
        nothing, where no tier above the one that it is in has room.
        """
        before = self._places.get(name)
        if name in self._pinned:
            return None
        for tier in range(len(self._tiers) if before is None else before.tier):
            self._tiers[tier].policy.used(name)  # a policy that counts has seen it now
            descents: list[Descent] = []
            slot = self._make_room(tier, name, descents)
            if slot is None:
                continue
            if name in self._places:
                self._remove(name)
            place = Place(tier, slot)
            self._add(name, place)
            return place, descents
        return None

    def withdraw(self, names: Iterable[bytes]) -> None:
        """Has none of `names` found any more."""
        for name in names:
            if name in self._places:
                self._remove(name)

    def lose(self, names: Iterable[bytes]) -> None:
        """Withdraws `names`, and uses their slots no more: they don't give back what was written there."""
        for name in names:
            if name in self._places:
                place = self._remove(name)
                self._tiers[place.tier].free.remove(place.slot)

    def forget(self, tier: int | None = None) -> None:
        """Has nothing found any more, or nothing of one tier."""
        self.withdraw([name for name, place in self._places.items() if tier is None or place.tier == tier])

    def close(self, tier: int) -> None:
        """Gives a tier up: it holds nothing from now on."""
        self.forget(tier)
        self._tiers[tier].free.clear()

    def check(self) -> None:
        """Raises EngineError unless every slot is free or has a name, and every name a slot."""
        found = {
            name: Place(tier, slot)
            for tier, each in enumerate(self._tiers)
            for slot, name in each.names.items()
        }
        is_sound = found == self._places and all(
            each.policy.local.keys() == set(each.names.values()) and not set(each.free) & each.names.keys()
            for each in self._tiers
        )
        if not is_sound:
            raise EngineError(
                "slots of the tiers are leaked or have two names; this is a bug in the tier index"
            )

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._places)

    def _make_room(self, tier: int, name: bytes, descents: list[Descent]) -> int | None:
        """A slot of `tier` that nothing is in any more; None: `name` is not worth what would have to leave."""
        own = self._tiers[tier]
        if own.free:
            return own.free.pop()
        victim = own.policy.victim(keep=name)
        if victim is None or victim in self._pinned or not own.policy.gives_way(victim, name):
            return None
        if tier + 1 < len(self._tiers):
            own.policy.tells(victim, self._tiers[tier + 1].policy)
        source = self._remove(victim)
        if tier + 1 < len(self._tiers):
            below = self._make_room(tier + 1, victim, descents)
            if below is not None:
                destination = Place(tier + 1, below)
                descents.append(Descent(source, destination))
                self._add(victim, destination)
        return own.free.pop()

    def _add(self, name: bytes, place: Place) -> None:
        own = self._tiers[place.tier]
        own.names[place.slot] = name
        own.policy.inserted(name, is_local=True)
        self._places[name] = place

    def _remove(self, name: bytes) -> Place:
        place = self._places.pop(name)
        own = self._tiers[place.tier]
        own.policy.removed(name)
        del own.names[place.slot]
        own.free.append(place.slot)
        return place
