"""A sweep: one trace through every policy at every size of one tier, the other tiers as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from interlace.cache.block_trace import BlockTrace
from interlace.cache.policies import POLICIES, Cache, TinyLfu
from interlace.cache.simulator import Pricing, Simulated, simulate
from interlace.cache.tier_spec import Size, TierSpec
from interlace.errors import BlockTraceError

STEPS = (1, 2, 5)
LEAST_SHARE = 200  # the least size by default: this part of all distinct blocks, or more


@dataclass(frozen=True)
class Point:
    """One policy at one size. `capacities` are the blocks of each tier; None: no limit."""

    policy: str
    capacities: Sequence[int | None]  # (num_tiers,)
    found: Simulated


@dataclass(frozen=True)
class Sweep:
    """Policies, tiers from the top down, and the sizes of the tier that is given without one.

    Raises:
        BlockTraceError: an unknown policy; no tier, or two of a name; several tiers without a size; sizes to try, but
            no tier without one; a size in bytes that holds no block.
    """

    trace: BlockTrace
    policies: Sequence[str]
    tiers: Sequence[TierSpec]
    sizes: Sequence[Size]
    pricing: Pricing
    reads_per_block: int = 10  # of TinyLFU

    def __post_init__(self) -> None:
        for policy in self.policies:
            if policy not in POLICIES:
                raise BlockTraceError(f"got the policy {policy!r}; expected one of {', '.join(POLICIES)}")
        names = [tier.name for tier in self.tiers]
        if not names or len(set(names)) < len(names):
            raise BlockTraceError(f"got the tiers {names}; expected one or more, each with a name of its own")
        without = [tier.name for tier in self.tiers if tier.size is None]
        if len(without) > 1:
            raise BlockTraceError(
                f"got no size for the tiers {', '.join(without)}; expected one at most, which is tried in many"
            )
        if self.sizes and not without:
            raise BlockTraceError(
                "got sizes to try, and a size for every tier; expected a tier without one, such as cxl@cxl-direct"
            )
        for tier in self.tiers:
            if tier.size is not None:
                self._blocks(tier.size)

    @property
    def swept(self) -> int | None:
        """The tier whose size is tried; None: every tier has one."""
        return next((at for at, tier in enumerate(self.tiers) if tier.size is None), None)

    def capacities(self) -> list[list[int | None]]:
        """The blocks of each tier, for each size that is tried: (num_sizes, num_tiers)."""
        tried = [self._blocks(size) for size in self.sizes] or default_sizes(self.trace.num_distinct)
        if self.swept is None:
            tried = [None]  # is not looked at
        return [
            [size if tier.size is None else self._blocks(tier.size) for tier in self.tiers] for size in tried
        ]

    def run(self) -> Iterator[Point]:
        """Every policy at each size, one size after the other."""
        for capacities in self.capacities():
            for policy in self.policies:
                yield Point(
                    policy, capacities, simulate(self.trace, self._new(policy, capacities), self.pricing)
                )

    def without_cache(self) -> Simulated:
        """The same requests where nothing is kept."""
        return simulate(self.trace, self._new("lru", [0] * len(self.tiers)), self.pricing)

    def _new(self, policy: str, capacities: Sequence[int | None]) -> Cache:
        if policy == TinyLfu.name:
            return TinyLfu(self.trace, capacities, self.reads_per_block)
        return POLICIES[policy](self.trace, capacities)

    def _blocks(self, size: Size) -> int | None:
        blocks = size.in_blocks(self.pricing.block_bytes)
        if blocks == 0 and size.bytes is not None:
            raise BlockTraceError(
                f"got a size of {size.bytes:,} bytes; expected at least a block, {self.pricing.block_bytes:,}"
            )
        return blocks


def default_sizes(num_distinct: int) -> list[int | None]:
    """Round numbers of blocks, up to those that hold every block; then no limit."""
    rounded = (step * 10**power for power in range(16) for step in STEPS)
    return [*(size for size in rounded if num_distinct / LEAST_SHARE <= size < num_distinct), None]
