"""Blocks that the pass of `interlace plan show` moves between the KV cache and a tier below it, and their price.

Everything that it prices is *modelled*: from the tier's timing, or where it has none from round figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlace.cache.kv_tier import KvTierSpec
from interlace.errors import EngineError
from tokenweave.kernels import BLOCK_SIZE
from tokenweave.plan import NO_MOVES, Moves, Op, Operation

if TYPE_CHECKING:
    from tokenweave.cost import Moved

NEEDS_TIER = "expected a tier with them, such as --kv-tier cxl:8GB@cxl-direct"
NEEDS_MOVES = "expected --fetch TOKENS, --evict TOKENS or --store with it: what the pass moves"


@dataclass(frozen=True)
class PlanMoves:
    """Blocks of 16 tokens that a pass moves: each counts, in each layer, with what its rank has of it."""

    tier: KvTierSpec | None = None
    num_evicted: int = 0
    num_fetched: int = 0
    num_stored: int = 0

    @classmethod
    def of(cls, tier: str | None, fetch: int, evict: int, num_tokens: int, *, stores: bool) -> PlanMoves:
        """Reads the options of the command: `fetch` and `evict` in tokens, and whether the blocks go down that the
        pass over `num_tokens` tokens, behind the fetched ones, fills.

        Raises:
            EngineError: they are no whole blocks, or there is a tier and nothing to move, or the other way around.
        """
        if tier is None:
            if fetch or evict or stores:
                raise EngineError(f"got --fetch, --evict or --store and no tier: {NEEDS_TIER}")
            return cls()
        spec = KvTierSpec.parse(tier)
        num_stored = num_tokens // BLOCK_SIZE if stores else 0
        if stores and not num_stored:
            raise EngineError(
                f"got --store: {num_tokens} tokens fill no block of {BLOCK_SIZE}; compute more, say "
                f"--tokens {BLOCK_SIZE}"
            )
        found = cls(spec, _blocks("--evict", evict), _blocks("--fetch", fetch), num_stored)
        if found.moves == NO_MOVES:
            raise EngineError(f"got --kv-tier {tier} and nothing to move: {NEEDS_MOVES}")
        return found

    @property
    def moves(self) -> Moves:
        """As a plan has to know them."""
        return Moves(evicts=self.num_evicted > 0, fetches=self.num_fetched > 0, stores=self.num_stored > 0)

    @property
    def num_fetched_tokens(self) -> int:
        return self.num_fetched * BLOCK_SIZE

    def blocks_of(self, op: Operation) -> int:
        """The number of blocks that a step of `op` moves."""
        return {Op.EVICT: self.num_evicted, Op.FETCH: self.num_fetched, Op.STORE: self.num_stored}.get(op, 0)

    @property
    def text(self) -> str:
        """The tier and its price, in words."""
        from interlace.engine.weaving.fetch_planner import COPY_S_PER_BYTE

        assert self.tier is not None
        copied = f"{1e-9 / COPY_S_PER_BYTE:g} GB/s"
        timing = self.tier.timing
        if timing is None:
            return (
                f"tier {self.tier.text}: assumed as fast as a core copies, {copied}; the engine measures it"
            )
        read = _speed(timing.read_bandwidth_gbps, timing.total_read_latency_ns)
        write = _speed(timing.write_bandwidth_gbps, timing.total_write_latency_ns)
        return f"tier {self.tier.text}: read at {read}, written at {write}; a core copies {copied}"

    def priced(self, block_bytes: float) -> Moved:
        """The price of the steps of one layer, in which a block has `block_bytes`."""
        from interlace.engine.weaving.fetch_planner import COPY_S_PER_BYTE, TierSpeed

        timing = None if self.tier is None else self.tier.timing
        if timing is None:
            up = down = TierSpeed(COPY_S_PER_BYTE)
        else:
            gbps, latency_ns = timing.write_bandwidth_gbps, timing.total_write_latency_ns
            up = TierSpeed.modelled(timing)
            down = TierSpeed(COPY_S_PER_BYTE, 1e-9 / gbps if gbps else 0.0, latency_ns * 1e-9)
        speeds = {Op.EVICT: down, Op.FETCH: up, Op.STORE: down}
        return {
            op: speed.phases(self.blocks_of(op) * block_bytes)
            for op, speed in speeds.items()
            if self.blocks_of(op)
        }

    def check_room(self, block_bytes: int) -> None:
        """Whether the tier can hold all of these blocks, each of `block_bytes` in all layers of one rank.

        Raises:
            EngineError: it cannot.
        """
        count = self.num_evicted + self.num_fetched + self.num_stored
        room = None if self.tier is None else self.tier.size_bytes
        if room is not None and self.tier is not None and count * block_bytes > room:
            raise EngineError(
                f"got the tier {self.tier.text!r} for {count * BLOCK_SIZE} tokens, {count * block_bytes / 1e6:,.1f} MB "
                f"of a rank: expected a larger one, or at most {room // block_bytes * BLOCK_SIZE} tokens"
            )


NOTHING_MOVED = PlanMoves()


def _speed(gbps: float, latency_ns: float) -> str:
    return f"{f'{gbps:g} GB/s' if gbps else 'any speed'}, {latency_ns:g} ns"


def _blocks(option: str, num_tokens: int) -> int:
    """Tiers hold whole blocks."""
    if num_tokens < 0 or num_tokens % BLOCK_SIZE:
        nearest = max(1, round(num_tokens / BLOCK_SIZE)) * BLOCK_SIZE
        raise EngineError(
            f"got {option} {num_tokens}: expected a multiple of {BLOCK_SIZE}, as tiers hold whole blocks; say {nearest}"
        )
    return num_tokens // BLOCK_SIZE
