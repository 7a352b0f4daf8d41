"""Tuning: measures a wave table, by timing stages that the caller supplies at many token counts.

Rounds are interleaved: each round times everything once, so that a slow phase of the machine falls on all alike. A time
is the best of its rounds, as what disturbs a measurement only ever adds to it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from tokenweave.cost import CostModel
from tokenweave.cta_choice import with_best_ctas
from tokenweave.curves import AttentionTimes, Curve, Pace
from tokenweave.geometry import BatchGeometry, pairs_seen
from tokenweave.plan import plan_forward
from tokenweave.simulate import simulate
from tokenweave.sm_sharing import BesideCtas, SmSharing
from tokenweave.token_grids import device_grid, token_grid
from tokenweave.wave_table import CURVES, KindTimes, MlpShape, TableKey, WaveTable

if TYPE_CHECKING:
    from tokenweave.host_costs import HostCosts

Progress = Callable[[float, str], None]  # the fraction that is done, and what is being measured

QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
CONTEXT = 1024  # keys before the new tokens, in the second of two measurements of attention
LEFT = 0.25  # of the time that products should lose with the SMs: less says that they lost no SMs
MANY = 8  # sequences of up to FEW_QUERIES new tokens that are timed together
FEW_QUERIES = 16
MIN_ROUNDS, MAX_ROUNDS = 3, 12
SAMPLE_S = 2e-3  # short stages are repeated within a sample, up to about this
MAX_REPEATS = 16
PACE_TOKENS = (256, 640, 1536)
GPU_PACE_TOKENS = (256, 1024, 4096)
PACE_ROUNDS = 5
MOST_PACE = 3.0  # whatever slows a pass by more than that is no property of the machine


class Stages(Protocol):
    """All ranks of a model on this host, each ready to run any stage of a layer at any number of tokens.

    `kind` is a place in the kinds of the table's key; a layer of that kind is timed.
    """

    def time(self, stage: str, num_tokens: int, repeats: int, num_ctas: int = 0) -> tuple[float, ...]:
        """Seconds that each rank took on average, all of them beginning together. `stage` is one of CURVES.

        With `num_ctas`, one of `ctas`, a reduction takes so many CTAs, and products have the SMs that these leave.
        """

    def time_mlp(self, kind: int, num_tokens: int, repeats: int, num_ctas: int = 0) -> tuple[float, ...]:
        """The same of the MLP, or of the experts."""

    def time_attention(
        self, kind: int, num_seqs: int, num_new: int, num_keys: int, repeats: int
    ) -> tuple[float, ...]:
        """The same of attention alone: the last `num_new` of the `num_keys` tokens of each sequence."""

    def time_pass(self, num_tokens: int, num_ctas: int = 0) -> tuple[float, ...]:
        """Seconds that each rank took for a pass, not woven, over one sequence from its start: by the wall clock, or
        on a GPU by the device's, with reductions of `num_ctas`."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The kind of each layer of that pass."""

    @property
    def ctas(self) -> tuple[int, ...]:
        """The numbers of CTAs that a reduction may take, ascending; () on processors."""

    @property
    def num_sms(self) -> int:
        """The SMs that lanes share; 0 on processors."""

    def host_costs(self) -> HostCosts:
        """Measures what the executor adds to a plan's steps."""


class _Place(NamedTuple):
    """Where in the table a cell is."""

    stage: str
    num_tokens: int
    kind: int = 0  # the first one with this MLP or this window: what is alike is measured once
    num_keys: int = 0
    num_ctas: int = 0


@dataclass
class _Sample:
    """One cell of the table while it is measured."""

    run: Callable[[int], tuple[float, ...]]
    repeats: int = 1
    best_s: tuple[float, ...] = ()

    def take(self) -> None:
        seconds = self.run(self.repeats)
        self.best_s = tuple(map(min, self.best_s, seconds)) if self.best_s else seconds
        if max(seconds) > 0:
            self.repeats = max(1, min(MAX_REPEATS, int(SAMPLE_S / max(seconds))))

    @property
    def seconds(self) -> float:
        """The slowest rank's best."""
        return max(self.best_s)


def measure_table(
    stages: Stages,
    key: TableKey,
    *,
    max_tokens: int,
    row_tile: int,
    budget_s: float = 60.0,
    progress: Progress | None = None,
) -> WaveTable:
    """Measures every cell, round after round, for about `budget_s` seconds or at least three rounds.

    On a GPU the table also says how many CTAs a reduction takes.
    """
    grid_of = device_grid if stages.num_sms else token_grid
    cells = _cells(stages, key, grid_of(max_tokens, row_tile))
    if stages.ctas:
        cells |= _cells_by_ctas(stages, key, grid_of(max_tokens, row_tile), row_tile)
    _run_rounds(cells, budget_s, progress)
    table = _table(key, cells, stages.host_costs())
    if stages.ctas:
        table = _with_ctas(table, cells, stages)
    return replace(table, pace=_measure_pace(stages, table, max_tokens))


def _cells(stages: Stages, key: TableKey, grid: tuple[int, ...]) -> dict[_Place, _Sample]:
    """The cells that are to be measured, and how each is."""
    cells: dict[_Place, _Sample] = {}
    for stage in CURVES:
        for count in _counts(stage, grid):
            cells[_Place(stage, count)] = _Sample(partial(stages.time, stage, count))
    for kind in sorted({_first_with(kind.mlp, key) for kind in key.kinds}):
        for count in grid:
            cells[_Place("mlp", count, kind)] = _Sample(partial(stages.time_mlp, kind, count))
    for kind in sorted({_first_with(kind.window, key) for kind in key.kinds}):
        for count in (count for count in QUERIES if count <= grid[-1]):
            for keys in (count, count + CONTEXT):
                sample = _Sample(partial(_time_attention, stages, kind, count, keys))
                cells[_Place("attention", count, kind, keys)] = sample
    return cells


def _cells_by_ctas(
    stages: Stages, key: TableKey, grid: tuple[int, ...], row_tile: int
) -> dict[_Place, _Sample]:
    """Reductions of each number of CTAs, and products beside them: of whole tiles, as the parts of a batch are."""
    whole = tuple(count for count in grid if count % row_tile == 0) or grid[-1:]
    cells: dict[_Place, _Sample] = {}
    for ctas in stages.ctas:
        for count in _counts("reduce", grid):
            cells[_Place("reduce", count, num_ctas=ctas)] = _Sample(
                partial(stages.time, "reduce", count, num_ctas=ctas)
            )
        for count in whole:
            cells[_Place("projections", count, num_ctas=ctas)] = _Sample(
                partial(stages.time, "projections", count, num_ctas=ctas)
            )
        for kind in sorted({_first_with(kind.mlp, key) for kind in key.kinds}):
            for count in whole:
                sample = _Sample(partial(stages.time_mlp, kind, count, num_ctas=ctas))
                cells[_Place("mlp", count, kind, num_ctas=ctas)] = sample
    return cells


def _with_ctas(table: WaveTable, cells: Mapping[_Place, _Sample], stages: Stages) -> WaveTable:
    """`table` with the times by CTAs, and with the number of CTAs that they speak for."""
    firsts = [_first_with(kind.mlp, table.key) for kind in table.key.kinds]
    beside = tuple(
        BesideCtas(
            ctas,
            _curve(cells, "reduce", 0, ctas),
            _curve(cells, "projections", 0, ctas),
            tuple(_curve(cells, "mlp", first, ctas) for first in firsts),
        )
        for ctas in stages.ctas
    )
    sharing = SmSharing.of(stages.num_sms, beside)
    if not _leave_sms(table, sharing):
        sharing = sharing.in_proportion(table.projections, tuple(kind.mlp for kind in table.kinds))
    return with_best_ctas(CostModel(replace(table, sharing=sharing), layers=stages.layers))


def _leave_sms(table: WaveTable, sharing: SmSharing) -> bool:
    """Whether products did leave SMs when they were told to: only some of torch's libraries follow its switch.

    Where they don't, products that were timed alone would seem to lose nothing to CTAs beside them.
    """
    most = sharing.beside[-1]
    pairs = [(table.projections, most.projections)]
    pairs += [(kind.mlp, mlp) for kind, mlp in zip(table.kinds, most.mlps, strict=True)]
    alone_s = sum(alone(count) for alone, beside in pairs for count in beside.tokens)
    beside_s = sum(seconds for _, beside in pairs for seconds in beside.seconds)
    return beside_s - alone_s > LEFT * (sharing.slow_down(most.num_ctas) - 1) * alone_s


def _first_with(what: MlpShape | int, key: TableKey) -> int:
    """The place of the first kind that has this MLP, or this window."""
    return next(place for place, kind in enumerate(key.kinds) if what in (kind.mlp, kind.window))


def _measure_pace(stages: Stages, table: WaveTable, max_tokens: int) -> Pace:
    """Whole passes beside what `table` says of them, the rounds interleaved. Medians: a pass is as long as it is."""
    wanted = GPU_PACE_TOKENS if stages.num_sms else PACE_TOKENS
    counts = tuple(count for count in wanted if count <= max_tokens) or (max_tokens,)
    taken: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(1 + PACE_ROUNDS):
        for count in counts:
            ctas = 0 if table.sharing is None else table.sharing.in_whole(count).num_ctas
            seconds = max(stages.time_pass(count, ctas))
            if turn:  # the first one touches memory for the first time
                taken[count].append(seconds)
    factors = []
    for count in counts:
        plan = plan_forward(len(stages.layers), count)
        costs = CostModel(table, layers=stages.layers).cost_of(plan, BatchGeometry.prefill(count))
        alone_s = simulate(plan, costs, shared_core=True).total_s  # without the host's part, as it is timed
        factors.append(min(MOST_PACE, max(1 / MOST_PACE, statistics.median(taken[count]) / alone_s)))
    return Pace(counts, tuple(factors))


def _time_attention(
    stages: Stages, kind: int, num_new: int, num_keys: int, repeats: int
) -> tuple[float, ...]:
    """One sequence's share: few new tokens are timed in many sequences, as decodes come."""
    num_seqs = MANY if num_new <= FEW_QUERIES else 1
    times = stages.time_attention(kind, num_seqs, num_new, num_keys, repeats)
    return tuple(seconds / num_seqs for seconds in times)


def _counts(stage: str, grid: tuple[int, ...]) -> tuple[int, ...]:
    """Logits are wanted of few rows as a rule, and what is not a matrix product has no waves: fewer points do."""
    if stage == "logits":
        return tuple(count for count in grid if count in (1, 2, 4, 8, 12, 13, 16, 24, 32, 48)) or grid[:1]
    if stage in ("embed", "reduce"):
        return tuple(
            count
            for place, count in enumerate(grid)
            if count & (count - 1) == 0 or count == grid[-1] or (count > 48 and place % 2)
        )
    return grid


def _run_rounds(cells: Mapping[_Place, _Sample], budget_s: float, progress: Progress | None) -> None:
    start, rounds, longest_s = time.monotonic(), 0, 0.0
    while rounds < MAX_ROUNDS:
        began = time.monotonic()
        if rounds >= MIN_ROUNDS and began - start + longest_s > budget_s:
            break
        for done, (place, cell) in enumerate(cells.items()):
            cell.take()
            if progress is not None and done % 8 == 0:
                by_rounds = (rounds + done / len(cells)) / MAX_ROUNDS
                by_time = (time.monotonic() - start) / budget_s if rounds >= MIN_ROUNDS else 0.0
                progress(min(1.0, max(by_rounds, by_time)), f"{place.stage}, {place.num_tokens:,} tokens")
        rounds += 1
        longest_s = max(longest_s, time.monotonic() - began)
    if progress is not None:
        progress(1.0, "")


def _table(key: TableKey, cells: Mapping[_Place, _Sample], host: HostCosts) -> WaveTable:
    projections, embed, logits, reduce = (_curve(cells, name, 0) for name in CURVES)
    kinds = tuple(
        KindTimes(
            _attention_times(cells, _first_with(kind.window, key), kind.window),
            _curve(cells, "mlp", _first_with(kind.mlp, key)),
        )
        for kind in key.kinds
    )
    return WaveTable(key, projections, kinds, embed, logits, reduce, host)


def _curve(cells: Mapping[_Place, _Sample], stage: str, kind: int, num_ctas: int = 0) -> Curve:
    points = sorted(
        (place.num_tokens, cell.seconds)
        for place, cell in cells.items()
        if (place.stage, place.kind, place.num_ctas) == (stage, kind, num_ctas)
    )
    return Curve(*(tuple(axis) for axis in zip(*points, strict=True)))


def _attention_times(cells: Mapping[_Place, _Sample], kind: int, window: int) -> AttentionTimes:
    """The line through the two measurements of each number of new tokens, of which they see `window` keys at most."""
    found: dict[int, list[tuple[float, float]]] = {}
    for place, cell in cells.items():
        if (place.stage, place.kind) == ("attention", kind):
            new, keys = (np.array([float(count)]) for count in (place.num_tokens, place.num_keys))
            pairs = float(pairs_seen(new, keys, window)[0])
            found.setdefault(place.num_tokens, []).append((pairs, cell.seconds))
    return AttentionTimes.fit((count, few, many) for count, (few, many) in found.items())
