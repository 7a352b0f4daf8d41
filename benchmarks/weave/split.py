"""`make bench split`: the split that the engine chooses, measured beside a sweep over aligned splits.

One sequence of T tokens is prefilled at every split of the sweep and without any, the rounds interleaved; every split
has to give the logits of the whole batch first. The least of many noisy times is too small, so the sweep's winner and
the chosen split run against each other once more, and only these times count. Beside them stand the simulator's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from emucxl.bench.harness import Progress, Report, Samples, interleaved, part_of
from interlace.errors import BenchError
from interlace.models.batch import ForwardBatch
from tokenweave.geometry import BatchGeometry
from tokenweave.kernels import BLOCK_SIZE
from tokenweave.plan import plan_forward
from tokenweave.simulate import simulate
from tokenweave.split import candidates

if TYPE_CHECKING:
    from interlace.engine.config import EngineConfig
    from interlace.engine.ranks.group import RankGroup
    from interlace.engine.weaving.weaver import Weaver
    from tokenweave.cost import CostModel

TOKENS = (640, 1100, 1536, 2560, 3000)
SWEEP_POINTS = 16  # between an eighth and seven eighths of the tokens, besides the candidates
FINAL_ROUNDS = 7  # of the chosen split, the sweep's best, and none


@dataclass(frozen=True)
class SplitFigures:
    """One number of tokens: measured seconds of splits (None: no split), and what was predicted."""

    num_tokens: int
    chosen: int | None
    swept: dict[int | None, Samples]
    finals: dict[int | None, Samples]  # of the chosen split, the sweep's best, and none
    predicted_s: dict[int | None, float]

    @property
    def best(self) -> int | None:
        return best_of(self.swept)

    @property
    def over_best(self) -> Samples:
        """The chosen split's time over the best one's, round by round."""
        return self.finals[self.chosen].over(self.finals[self.best])

    @property
    def over_unsplit(self) -> Samples:
        return self.finals[self.chosen].over(self.finals[None])

    @property
    def simulator_error(self) -> float:
        """How far the simulated time of the chosen plan is from the measured one, as a share of it."""
        return self.predicted_s[self.chosen] / self.finals[self.chosen].median - 1


def best_of(swept: dict[int | None, Samples]) -> int | None:
    """The split of the least median."""
    return min(swept, key=lambda split: swept[split].median)


def measure(
    config: EngineConfig, tokens: tuple[int, ...], rounds: int, progress: Progress | None = None
) -> tuple[list[SplitFigures], bool]:
    """Load the model on its ranks and sweep; also, whether the prices come from a measured wave table.

    Raises:
        BenchError: a split changes the logits.
    """
    from interlace.engine.ranks.launch import start
    from interlace.engine.weaving.weaver import Weaver, costs_of

    most = max(tokens)
    group = start(
        replace(
            config,
            weave="auto",
            max_num_batched_tokens=most,
            max_model_len=most,
            num_kv_blocks=-(-most // BLOCK_SIZE),
        )
    )
    try:
        weaver, costs = group.weaver, costs_of(group.runner)
        group.weaver = Weaver("never", weaver.alignment, shared_core=weaver.shared_core)
        found = [
            _sweep(group, weaver, costs, num_tokens, rounds, part_of(progress, place, len(tokens), "split"))
            for place, num_tokens in enumerate(tokens)
        ]
        return found, costs.table.is_measured
    finally:
        group.close()


def _sweep(
    group: RankGroup,
    weaver: Weaver,
    costs: CostModel,
    num_tokens: int,
    rounds: int,
    progress: Progress | None,
) -> SplitFigures:
    batch = ForwardBatch.prefill(num_tokens, group.model_config.vocab_size)
    chosen = weaver.split(batch)
    expected = group.execute(batch).clone()
    splits = {None, chosen, *sweep(num_tokens, weaver.alignment)}
    for split in splits - {None}:
        if not torch.equal(group.execute(replace(batch, split=split)), expected):
            raise BenchError(
                f"splitting {num_tokens} tokens at {split} changes the logits; expected equal bits"
            )

    def timed(split: int | None) -> Callable[[], float]:
        return lambda: _seconds(lambda: group.execute(replace(batch, split=split)))

    def run(splits: set[int | None], rounds: int) -> dict[int | None, Samples]:
        samples = interleaved({str(split): timed(split) for split in splits}, rounds, progress)
        return {split: samples[str(split)] for split in splits}

    def predict(split: int | None) -> float:
        plan = plan_forward(group.model_config.num_layers, num_tokens, split)
        cost = costs.cost_of(plan, BatchGeometry.prefill(num_tokens))
        return simulate(plan, cost, shared_core=weaver.shared_core).total_s

    swept = run(splits, rounds)
    finals = run({None, chosen, best_of(swept)}, FINAL_ROUNDS)
    return SplitFigures(num_tokens, chosen, swept, finals, {split: predict(split) for split in splits})


def sweep(num_tokens: int, alignment: int) -> list[int]:
    """Aligned splits from an eighth to seven eighths of the tokens, and the candidates of the policy."""
    units = num_tokens // alignment
    step = max(1, round(units * 3 / 4 / SWEEP_POINTS))
    spread = range(max(1, units // 8), units - units // 8 + 1, step)
    found = {unit * alignment for unit in spread} | set(candidates(num_tokens, alignment))
    return sorted(split for split in found if 0 < split < num_tokens)


def report(config: EngineConfig, found: list[SplitFigures], is_table_measured: bool) -> Report:
    """One row for each number of tokens."""
    link = f"over a modelled link of {config.link}" if config.link else "without a link"
    source = "a measured wave table" if is_table_measured else "FLOPs and bytes: no wave table was measured"
    return Report(
        name="split",
        title=f"{config.model}, {config.tp} ranks {link}: the chosen split against a sweep, ms",
        columns=(
            "tokens", "not split", "chosen", "its time", "best", "its time",
            "chosen/best", "chosen/not split", "simulated (modelled)", "simulated/measured",
        ),
        rows=tuple(_row(each) for each in found),
        notes=(
            f"best: of the sweep; times: medians of {FINAL_ROUNDS} more interleaved rounds (quartiles)",
            f"simulated from {source}",
        ),
        results={
            "link": config.link,
            "is_table_measured": is_table_measured,
            "tokens": [_to_json(each) for each in found],
        },
    )  # fmt: skip


def _row(found: SplitFigures) -> tuple[str, ...]:
    def ms(split: int | None) -> str:
        return f"{1e3 * found.finals[split].median:,.1f}"

    return (
        str(found.num_tokens),
        ms(None),
        _name(found.chosen),
        ms(found.chosen),
        _name(found.best),
        ms(found.best),
        found.over_best.text(3),
        found.over_unsplit.text(3),
        f"{1e3 * found.predicted_s[found.chosen]:,.1f}",
        f"{1 + found.simulator_error:.3f}",
    )


def _to_json(found: SplitFigures) -> dict[str, Any]:
    return {
        "num_tokens": found.num_tokens,
        "chosen": found.chosen,
        "best": found.best,
        "chosen_over_best": found.over_best.to_json("ratio"),
        "chosen_over_unsplit": found.over_unsplit.to_json("ratio"),
        "splits": [
            {
                "split": split,
                "measured": found.swept[split].to_json("s"),
                "simulated_s": found.predicted_s[split],
            }
            for split in sorted(found.swept, key=lambda split: split or 0)
        ],
        "finals": [
            {"split": split, "measured": found.finals[split].to_json("s")}
            for split in sorted(found.finals, key=lambda split: split or 0)
        ],
    }


def _name(split: int | None) -> str:
    return "none" if split is None else str(split)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
