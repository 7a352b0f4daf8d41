"""Traffic: figures of what goes between the KV cache of one rank and its tiers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TierTraffic:
    """The bytes that went between the KV cache of one rank and one tier since the engine was made."""

    fetched_bytes: int = 0
    written_bytes: int = 0
    num_fetches: int = 0  # passes that fetched from it
    fetch_s: float = 0.0  # from asking to the last layer's arrival
    waited_s: float = 0.0  # of these, those that the compute lane stood still for
    num_failures: int = 0  # blocks that could not be fetched or written
    num_told: int = 0  # of these, when somebody was last told
    is_given_up: bool = False


@dataclass(frozen=True)
class PassFetch:
    """How the fetches of one pass went."""

    failed: frozenset[int]
    """Blocks that it should have fetched and could not: it read nonsense there. Below zero are the places of tiers that
    were given up, -1 for the one at the top."""
    fetch_s: float = 0.0  # from asking to the last layer's arrival
    waited_s: float = 0.0  # of these, those that the compute lane stood still for


NOTHING_FETCHED = PassFetch(frozenset())


@dataclass(frozen=True)
class TierStats:
    """A tier below the KV cache, as it is now. Bytes and seconds are those of rank 0, since the engine was built."""

    tier: str  # as it was given
    num_blocks: int
    num_held_blocks: int
    num_hit_blocks: int  # fetched
    fetched_bytes: int
    written_bytes: int
    num_fetches: int  # passes that fetched from it
    fetch_s: float  # from asking to the arrival of the last layer, over these passes
    fetch_waited_s: float  # of these, those that a pass stood still for: the rest is hidden
    num_failures: int  # blocks that could not be read or written
    is_given_up: bool
