"""TierMemory of one rank: the tiers below its KV cache, opened and allocated.

A tier is a row of slots. A slot holds a block in all layers, one layer behind the other, so that a block goes down or
comes up as one piece a layer with the same distance between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from interlace.cache.kv_tier import KvTierSpec
from interlace.errors import EngineError

if TYPE_CHECKING:
    from emucxl import Buffer, Context, Tier
    from emucxl.providers import Provider

SHARE_OF_NODE = 0.8  # of a node's free memory, over its ranks, where a tier says no size


class SlotMemory:
    """The slots of each tier of one rank.

    Thread safety: none.
    """

    def __init__(
        self, specs: Sequence[KvTierSpec], slot_bytes: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        """Opens the tiers; `allocate` takes their memory. `slot_bytes` is 0 on a rank without heads, which needs none.

        Raises:
            EngineError: a tier cannot work here, or does not hold a single block.
        """
        self.specs, self.slot_bytes = tuple(specs), slot_bytes
        self.buffers: list[Buffer] = []
        self.notices: list[str] = []
        self._context: Context | None = None
        self._tiers: list[Tier] = []
        self.num_slots: list[int | None] = [None] * len(specs)  # of each tier; None: any number
        if slot_bytes and specs:
            self._open(rank, num_ranks)

    @property
    def context(self) -> Context:
        assert self._context is not None, "a rank without heads has no tiers"
        return self._context

    def allocate(self, num_slots: Sequence[int]) -> None:
        """Takes memory for so many slots of each tier.

        Raises:
            EngineError: there is not that much.
        """
        from emucxl.errors import EmucxlError

        for spec, tier, count in zip(self.specs, self._tiers, num_slots, strict=bool(self._tiers)):
            try:
                self.buffers.append(tier.alloc(count * self.slot_bytes))
            except (EmucxlError, OverflowError) as error:
                raise EngineError(
                    f"the tier {spec.text!r} has no room for {count:,} blocks: {error}"
                ) from error

    def close(self) -> None:
        """Gives the memory back."""
        self.buffers.clear()
        if self._context is not None:
            self._context.close()

    def _open(self, rank: int, num_ranks: int) -> None:
        from emucxl import Context
        from emucxl.errors import EmucxlError

        try:
            self._context = Context(name=f"rank {rank}")
        except EmucxlError as error:
            raise EngineError(f"tiers below the KV cache cannot be opened: {error}") from error
        try:
            for place, spec in enumerate(self.specs):
                self._tiers.append(self._add(spec, rank, num_ranks))
                self.num_slots[place] = self._num_slots(spec, self._tiers[-1])
        except BaseException:
            with suppress(EmucxlError):
                self._context.close()
            raise

    def _add(self, spec: KvTierSpec, rank: int, num_ranks: int) -> Tier:
        from emucxl.errors import EmucxlError

        size_bytes = spec.size_bytes
        if size_bytes is None:
            size_bytes = 0 if spec.node is None else free_node_bytes(spec.node, spec.text) // num_ranks
        try:
            provider = spec.provider(rank, num_ranks)
            return self._add_timed(spec, size_bytes, provider)
        except (EmucxlError, OSError, OverflowError) as error:
            raise EngineError(f"the tier {spec.text!r} cannot work here: {error}") from error

    def _add_timed(self, spec: KvTierSpec, size_bytes: int, provider: Provider) -> Tier:
        """With the bandwidths of its timing, or with this machine's own where that is slower, which is told."""
        from emucxl.errors import TooFastError

        name, timing = f"kv-{spec.name}", spec.timing
        while timing is not None and (timing.read_bandwidth_gbps or timing.write_bandwidth_gbps):
            try:
                return self.context.add_tier(name, size_bytes, provider, timing)
            except TooFastError as error:
                if not self.notices:
                    self.notices.append(f"the tier {spec.text!r} has this machine's own bandwidth: {error}")
                if timing.read_bandwidth_gbps:
                    timing = replace(timing, read_bandwidth_gbps=0.0)
                else:
                    timing = replace(timing, write_bandwidth_gbps=0.0)
        return self.context.add_tier(name, size_bytes, provider, timing)

    def _num_slots(self, spec: KvTierSpec, tier: Tier) -> int:
        held_bytes = tier.capacity_bytes if spec.size_bytes is None else spec.size_bytes
        num_slots = held_bytes // self.slot_bytes
        if num_slots < 1:
            raise EngineError(
                f"the tier {spec.text!r} has {held_bytes:,} bytes for this rank: expected at least "
                f"{self.slot_bytes:,}, which one block of the KV cache takes"
            )
        return num_slots


def free_node_bytes(node: int, text: str) -> int:
    """The part of a NUMA node's free memory that a tier may take.

    Raises:
        EngineError: there is no such node, or it does not tell.
    """
    try:
        lines = Path(f"/sys/devices/system/node/node{node}/meminfo").read_text().splitlines()
        free_kib = next(int(line.split()[3]) for line in lines if " MemFree:" in line)
    except (OSError, StopIteration, ValueError, IndexError) as error:
        raise EngineError(
            f"the tier {text!r} cannot work here: NUMA node {node} does not tell what is free of it; name a node "
            f"that is there, and a size (numa:{node}:8GB)"
        ) from error
    return int(free_kib * 1024 * SHARE_OF_NODE)
