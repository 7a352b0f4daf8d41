"""Prefill: how long a server takes to compute a prompt whose beginning a cache gave. Modelled, all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from emucxl.timing import check_number
from tokenweave.cost import CostModel
from tokenweave.geometry import BatchGeometry, narrows
from tokenweave.plan import plan_forward


class Prefill(Protocol):
    """A price of prefilling."""

    def __call__(self, num_new: int, num_cached: int) -> float:
        """Seconds to compute `num_new` tokens, at least 1, behind `num_cached` whose keys and values are there."""


@dataclass(frozen=True)
class SteadyPrefill:
    """A round figure: every token takes as long, however many are before it.

    Raises:
        ArgumentError: the rate is out of its range.
    """

    tokens_per_s: float

    def __post_init__(self) -> None:
        check_number("prefill_tokens_per_s", self.tokens_per_s, 1e-3, 1e12)

    def __call__(self, num_new: int, num_cached: int) -> float:
        return num_new / self.tokens_per_s


@dataclass(frozen=True)
class _PassPrice:
    """A pass of so many tokens takes `fixed_s`, and for each pair of a token and a key that it sees, `pair_s`."""

    fixed_s: float
    pair_s: dict[tuple[int, int], float]  # by rows that attend and window, of all layers with these
    issued_s: float  # until the host has issued its steps, where one thread issues those of all lanes

    def seconds(self, num_passes: int, num_keys: int) -> float:
        """Of `num_passes` such passes in a row, the last of which ends behind `num_keys` tokens."""
        computed_s = num_passes * self.fixed_s
        for (rows, window), pair_s in self.pair_s.items():
            computed_s += pair_s * _pairs(num_passes * rows, num_keys, window)
        return max(computed_s, num_passes * self.issued_s)


class TablePrefill:
    """The prices of a wave table: the prompt goes through passes of its own, cut as the engine cuts it, unwoven.

    A pass takes what its steps take one after the other, as the simulator of plans has it. Nothing else is in the
    batch, so what is told here is the least that a server with such layers takes.
    """

    def __init__(self, costs: CostModel, num_layers: int, pass_tokens: int) -> None:
        """pass_tokens: the most in one pass (`max_num_batched_tokens` of an engine)."""
        check_number("pass_tokens", pass_tokens, 1, 1_000_000)
        self._costs = costs
        self._num_layers = num_layers
        self._pass_tokens = pass_tokens
        self._prices: dict[tuple[int, bool], _PassPrice] = {}

    def __call__(self, num_new: int, num_cached: int) -> float:
        num_whole, num_last = divmod(num_new - 1, self._pass_tokens)
        num_last += 1
        seconds = self._price(num_last, True).seconds(1, num_cached + num_new)
        if num_whole:
            whole = self._price(self._pass_tokens, False)
            seconds += whole.seconds(num_whole, num_cached + num_new - num_last)
        return seconds

    def _price(self, num_tokens: int, is_last: bool) -> _PassPrice:
        found = self._prices.get((num_tokens, is_last))
        if found is None:
            found = self._prices[num_tokens, is_last] = self._priced(num_tokens, is_last)
        return found

    def _priced(self, num_tokens: int, is_last: bool) -> _PassPrice:
        """Prices the pass at position 0, and tells from it what attention takes for each pair."""
        costs, table = self._costs, self._costs.table
        plan = plan_forward(self._num_layers, num_tokens)
        ends = np.array([0, num_tokens], dtype=np.int32)
        wanted = ends[1:] - 1 if is_last else ends[:0]  # the logits of a prompt's last token alone
        cost = costs.cost_of(plan, BatchGeometry(ends, ends[1:], wanted))
        fixed_s = sum(phase.seconds for step in plan.steps for phase in cost(step))
        left = len(wanted) if narrows(num_tokens, len(wanted)) else num_tokens
        pair_s: dict[tuple[int, int], float] = {}
        for layer, kind in enumerate(costs.layers or (0,) * self._num_layers):
            rows = left if layer == self._num_layers - 1 else num_tokens
            if not rows:
                continue
            attention, window = table.kinds[kind].attention, table.key.kinds[kind].window
            each_s = float(np.interp(rows, attention.queries, attention.pair_s)) * table.pace(num_tokens)
            pair_s[rows, window] = pair_s.get((rows, window), 0.0) + each_s
            fixed_s -= each_s * _pairs(rows, num_tokens, window)
        return _PassPrice(fixed_s, pair_s, len(plan.steps) * table.host.issue_s)


def _pairs(num_new: int, num_keys: int, window: int) -> float:
    """`geometry.pairs_seen` of one sequence, in plain numbers: it is asked for at every request of a simulation."""
    seen = num_new * num_keys - num_new * (num_new - 1) / 2
    if not window:
        return seen
    above, below = max(num_keys - window, 0), max(num_keys - num_new - window, 0)
    return seen - (above * (above + 1) - below * (below + 1)) / 2
