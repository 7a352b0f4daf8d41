"""TierMemory of one rank: the tiers below its KV cache, opened and allocated.

A tier is a row of slots. A slot holds a block in all layers, one layer behind the other, so that a block goes down or
comes up as one piece a layer with the same distance between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from interlace.cache.kv_tier import KvTierSpec
from interlace.engine.cache.open_tier import open_tier
from interlace.errors import EngineError

if TYPE_CHECKING:
    from emucxl import Buffer, Context, Tier


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
                self._tiers.append(open_tier(self._context, "kv", spec, rank, num_ranks, self.notices))
                self.num_slots[place] = self._num_slots(spec, self._tiers[-1])
        except BaseException:
            with suppress(EmucxlError):
                self._context.close()
            raise

    def _num_slots(self, spec: KvTierSpec, tier: Tier) -> int:
        held_bytes = tier.capacity_bytes if spec.size_bytes is None else spec.size_bytes
        num_slots = held_bytes // self.slot_bytes
        if num_slots < 1:
            raise EngineError(
                f"the tier {spec.text!r} has {held_bytes:,} bytes for this rank: expected at least "
                f"{self.slot_bytes:,}, which one block of the KV cache takes"
            )
        return num_slots
