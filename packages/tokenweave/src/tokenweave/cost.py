"""Prices: what the steps of a plan take, from a wave table and a link. The simulator's and the split policy's input.

Each operation's record (`tokenweave.ops`) says how its steps are priced. Without a link only the core's phases count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from tokenweave.curves import AttentionTimes, Curve
from tokenweave.errors import TuneError
from tokenweave.geometry import BatchGeometry
from tokenweave.host_costs import LANES, STREAMS, HostCosts
from tokenweave.ops import Operation
from tokenweave.phases import Phase, PricedStep
from tokenweave.plan import Plan, Step
from tokenweave.simulate import Cost
from tokenweave.sm_sharing import BesideCtas, SmSharing
from tokenweave.traffic import exchanges_of_sum
from tokenweave.wave_table import KindTimes, MlpShape, RankShape, TableKey, WaveTable

Load = BatchGeometry  # under this name it is priced
Moved = Mapping[Operation, tuple[Phase, ...]]
NOTHING_MOVED: Moved = MappingProxyType({})
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# What the analytic default assumes where nothing was measured. Efficiencies are shares of the peak: ours on Zen 4.
GEMM_EFFICIENCY = 0.85
ATTENTION_EFFICIENCY = 0.6
ASSUMED_CTAS = 16  # of a reduction on a GPU: what the published kernel needs at most
ANALYTIC_TOKENS = tuple(sorted({*range(1, 49), *(12 * 2**power for power in range(2, 12))}))


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """The port of each rank, as in `tokenweave.link`; here its figures may be measured ones too."""

    bytes_per_s: float  # each way, at the same time
    latency_s: float = 0.0

    def seconds(self, size_bytes: float) -> float:
        return self.latency_s + size_bytes / self.bytes_per_s


@dataclass(frozen=True)
class CostModel:
    """Prices the steps of the slowest rank: its stages set the pace of all."""

    table: WaveTable
    link: LinkSpeed | None = None
    layers: tuple[int, ...] = ()
    """The kind of each layer: its place in the table's kinds. (): any number of layers of the only kind."""

    def __post_init__(self) -> None:
        known = len(self.table.kinds)
        if (not self.layers and known > 1) or not all(0 <= kind < known for kind in self.layers):
            raise TuneError(
                f"got layers of the kinds {self.layers}; expected a number from 0 to {known - 1} for each layer, as "
                f"the table has {known} kinds of layers"
            )

    def cost_of(self, plan: Plan, load: BatchGeometry, moved: Moved = NOTHING_MOVED) -> Cost:
        """The price of each step of `plan` over the batch that `load` describes.

        `moved` has the phases of one layer's steps on the memory lane: what it moves, and from where, decides them.

        Raises:
            TuneError: the plan has other layers than this model.
        """
        if self.layers and plan.num_layers != len(self.layers):
            raise TuneError(
                f"got a plan of {plan.num_layers} layers; expected {len(self.layers)}, as many as have a kind"
            )
        loads = [load.part(rows) for rows in plan.parts]
        tables = self._tables_of(loads)
        last = plan.num_layers - 1
        prices: dict[tuple[Operation, int, int | None, bool, bool], tuple[Phase, ...]] = {}

        def cost(step: Step) -> tuple[Phase, ...]:
            key = (step.op, self._kind_of(step), step.part, step.layer == last, step.norm == 2 * last)
            if key not in prices:
                prices[key] = self._phases(step, load, loads, tables, last, moved)
            return prices[key]

        return cost

    def _tables_of(self, parts: list[BatchGeometry]) -> list[WaveTable]:
        """The table of each part's stages: while one part computes, the other is reduced."""
        if len(parts) != 2:
            return [self.table] * len(parts)
        return [self.table.beside_reduction(other.num_tokens) for other in reversed(parts)]

    def _kind_of(self, step: Step) -> int:
        """The kind of the step's layer; outside of the layers all kinds are alike."""
        return self.layers[step.layer] if self.layers and step.layer is not None else 0

    def _part_s(
        self,
        step: Step,
        part: int,
        whole: BatchGeometry,
        parts: list[BatchGeometry],
        tables: list[WaveTable],
        *,
        is_last: bool,
    ) -> float:
        """Seconds on the core of one part's stage. Cutting a stage in two never makes it cheaper: where the table says
        so, that is noise in it, and the parts share what the whole takes."""
        op, kind = step.op, self._kind_of(step)
        each_s = [
            _stage_s(table, op, load, kind, is_last=is_last)
            for table, load in zip(tables, parts, strict=True)
        ]
        apart_s, whole_s = sum(each_s), self.stage_s(op, whole, kind, is_last=is_last)
        if apart_s >= whole_s:
            return each_s[part]
        if apart_s > 0:
            return whole_s * (each_s[part] / apart_s)
        rows = [op.price.rows(load, load.ending if is_last else load) for load in parts]
        return whole_s * rows[part] / max(1, sum(rows))

    def stage_s(self, op: Operation, load: BatchGeometry, kind: int = 0, *, is_last: bool = False) -> float:
        """Seconds on the core of one stage in a layer of `kind`; `is_last`: in the last layer, which ends with the rows
        that are wanted."""
        return _stage_s(self.table, op, load, kind, is_last=is_last)

    def link_s(self, num_tokens: int) -> float:
        """Seconds on the link of a reduce-scatter, and of an all-gather, over `num_tokens` rows."""
        if self.link is None:
            return 0.0
        key = self.table.key
        size = len(key.ranks)
        sent_bytes = num_tokens * key.hidden_size * DTYPE_BYTES[key.dtype] * (size - 1) / size
        return self.link.seconds(sent_bytes) + self.table.host.wake_s

    def keep_s(self, num_rows: int) -> float:
        """Seconds on the link of `select_residual` for so many rows."""
        if self.link is None or not num_rows:
            return 0.0
        exchanges = exchanges_of_sum(len(self.table.key.ranks), num_rows * self.table.key.hidden_size * 4)
        return sum(self.link.seconds(each.sent_bytes) + self.table.host.wake_s for each in exchanges)

    def hideable_s(self, num_tokens: int, *, shared_core: bool) -> float:
        """Seconds of one reduction that another part's computation could hide."""
        return 2 * self.link_s(num_tokens) + (0.0 if shared_core else self.table.reduce(num_tokens))

    def _phases(
        self,
        step: Step,
        whole: BatchGeometry,
        parts: list[BatchGeometry],
        tables: list[WaveTable],
        last: int,
        moved: Moved,
    ) -> tuple[Phase, ...]:
        """`last` is the plan's last layer. A step of no part works on what all parts left."""
        load = whole if step.part is None else parts[step.part]
        is_last = step.layer == last
        if step.part is None:
            core_s = self.stage_s(step.op, whole, self._kind_of(step), is_last=is_last)
        else:
            core_s = self._part_s(step, step.part, whole, parts, tables, is_last=is_last)
        rest = load.ending if is_last else load
        selects_residual = step.norm == 2 * last and load.ending is not load
        priced = PricedStep(
            num_rows=rest.num_tokens,
            core_s=self.table.pace(whole.num_tokens) * core_s,
            link_s=self.link_s(rest.num_tokens),
            handed_over_s=self.table.host.switch_s if len(parts) > 1 else 0.0,
            select_s=self.keep_s(load.ending.num_tokens) if selects_residual else None,
            moved=moved.get(step.op, ()),
        )
        return step.op.price.phases(priced)


def _stage_s(table: WaveTable, op: Operation, load: BatchGeometry, kind: int, *, is_last: bool) -> float:
    return op.price.core_s(table, kind, load, load.ending if is_last else load)


@dataclass(frozen=True, slots=True)
class Peaks:
    """The peak speeds of one rank's threads."""

    flops_per_s: float  # in products of the table's dtype
    bytes_per_s: float  # read


def analytic_table(
    key: TableKey,
    peaks: Peaks,
    row_tile: int = 1,
    weight_bytes: float | None = None,
    host: HostCosts = LANES,
) -> WaveTable:
    """A table from FLOPs and bytes, for when none was measured. Rows are counted in whole tiles of `row_tile`.

    `weight_bytes` are those of a value of a weight, fewer than the dtype's where weights are held in blocks.
    """
    stages = [
        _Stages(key, rank, peaks, row_tile, weight_bytes, host.call_s) for rank in range(len(key.ranks))
    ]

    def curve(stage: Callable[[_Stages, int], float]) -> Curve:
        return Curve(ANALYTIC_TOKENS, tuple(max(stage(rank, n) for rank in stages) for n in ANALYTIC_TOKENS))

    pair_s = max(4 * rank.heads * key.head_dim for rank in key.ranks) / (
        ATTENTION_EFFICIENCY * peaks.flops_per_s
    )
    key_s = max(2 * rank.kv_heads * key.head_dim for rank in key.ranks) * DTYPE_BYTES[key.dtype]
    attention = AttentionTimes(
        (1, 16), (1e-6, 5e-6), (max(pair_s, key_s / peaks.bytes_per_s), pair_s)
    )  # a single token reads every key for itself; with a window it sees fewer
    return WaveTable(
        key=key,
        projections=curve(_Stages.projections),
        kinds=tuple(KindTimes(attention, curve(partial(_Stages.mlp, shape=kind.mlp))) for kind in key.kinds),
        embed=curve(_Stages.embed),
        logits=curve(_Stages.logits),
        reduce=curve(_Stages.reduce),
        host=host,
        is_measured=False,
    )


def analytic_gpu_table(
    key: TableKey, peaks: Peaks, row_tile: int, num_sms: int, weight_bytes: float | None = None
) -> WaveTable:
    """As `analytic_table`, of ranks on GPUs of `num_sms`: lanes are streams, and share SMs in proportion.

    A reduction takes `ASSUMED_CTAS` SMs.
    """
    table = analytic_table(key, peaks, row_tile, weight_bytes, STREAMS)
    mlps = tuple(kind.mlp for kind in table.kinds)
    num_ctas = max(1, min(ASSUMED_CTAS, num_sms - 1))
    alone = BesideCtas(num_ctas, table.reduce, table.projections, mlps)
    sharing = SmSharing.of(num_sms, (alone,))
    return replace(table, sharing=sharing.in_proportion(table.projections, mlps))


class _Stages:
    """One rank's stages, priced by the slower of arithmetic and memory."""

    def __init__(
        self,
        key: TableKey,
        rank: int,
        peaks: Peaks,
        row_tile: int,
        weight_bytes: float | None,
        call_s: float,
    ) -> None:
        self.key, self.rank, self.peaks, self.row_tile = key, rank, peaks, row_tile
        self.call_s = call_s
        self.shape: RankShape = key.ranks[rank]
        self.item_bytes = DTYPE_BYTES[key.dtype]
        self.weight_bytes = self.item_bytes if weight_bytes is None else weight_bytes

    def projections(self, num_tokens: int) -> float:
        key, query = self.key, self.shape.heads * self.key.head_dim
        qkv = query + 2 * self.shape.kv_heads * key.head_dim
        return self._gemms(num_tokens, [(key.hidden_size, qkv), (query, key.hidden_size)])

    def mlp(self, num_tokens: int, shape: MlpShape) -> float:
        if not shape.num_experts:
            return self._gated(num_tokens, shape.columns[self.rank])
        chosen = num_tokens * shape.experts_per_token
        busy = min(shape.num_experts, chosen)
        seconds = busy * self._gated(math.ceil(chosen / shape.num_experts), shape.columns[self.rank])
        if shape.shared_columns:
            seconds += self._gated(num_tokens, shape.shared_columns[self.rank])
        return seconds

    def embed(self, num_tokens: int) -> float:
        return self.call_s + 3 * num_tokens * self.key.hidden_size * self.item_bytes / self.peaks.bytes_per_s

    def logits(self, num_tokens: int) -> float:
        return self._gemms(num_tokens, [(self.key.hidden_size, self.shape.vocab_rows)])

    def reduce(self, num_tokens: int) -> float:
        """Each rank reads every rank's part of its rows, updates its residual, and writes and is written all rows."""
        size, row_bytes = len(self.key.ranks), self.key.hidden_size * self.item_bytes
        own_bytes = num_tokens / size * (size * row_bytes + 2 * 4 * self.key.hidden_size + row_bytes)
        return self.call_s + (own_bytes + num_tokens * row_bytes) / self.peaks.bytes_per_s

    def _gated(self, num_tokens: int, columns: int) -> float:
        return self._gemms(num_tokens, [(self.key.hidden_size, 2 * columns), (columns, self.key.hidden_size)])

    def _gemms(self, num_tokens: int, shapes: list[tuple[int, int]]) -> float:
        rows = math.ceil(num_tokens / self.row_tile) * self.row_tile
        seconds = self.call_s
        for k, n in shapes:
            flops_s = 2 * rows * k * n / (GEMM_EFFICIENCY * self.peaks.flops_per_s)
            seconds += max(flops_s, k * n * self.weight_bytes / self.peaks.bytes_per_s)
        return seconds
