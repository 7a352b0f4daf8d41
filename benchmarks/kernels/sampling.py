"""`make bench sampling`: one token for each row of logits, natively and as torch's operations do it on a CPU.

Before anything is timed the native sampler's tokens have to be the reference's, and torch has to keep the same tokens
up to what its float32 sums round. Rows are of two laws: one that falls with the rank as a language model's do, and
normally distributed ones, of which a nucleus keeps many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels.turns import time_in_turns
from emucxl.bench.harness import Progress, Report, Samples, part_of
from interlace.errors import BenchError
from tokenweave import native
from tokenweave.native import ThreadPool
from tokenweave.sampling import SampledRow, SamplingRow, native_sample, reference_sample
from tokenweave.sampling.reference import filtered

VOCAB_SIZE, QUICK_VOCAB_SIZE = 49_152, 2_000  # SmolLM2's
NUM_ROWS, QUICK_NUM_ROWS = (1, 8, 64), (1, 2)
NUM_TOKENS, NUM_PROMPT = 192, 128  # of each row's text, which penalties look at
FALL_PER_DOUBLING = 1.1  # of a logit, where the rank doubles: about SmolLM2's on English prose
LARGEST_MASS_APART = 1e-4  # of all: tokens that only one side keeps, for torch adds up in float32
QUICK_S = 0.02
MOST_ROUNDS = 2_000


@dataclass(frozen=True)
class Choice:
    """How tokens are chosen: the fields of SamplingRow that are not at their defaults."""

    name: str
    options: dict[str, float | int] = field(default_factory=dict)

    def rows(self, count: int, vocab_size: int) -> list[SamplingRow]:
        """The parameters of each row, with texts of their own."""
        random = np.random.default_rng(1)
        tokens = random.integers(0, vocab_size, (count, NUM_TOKENS)).astype(np.int32)
        return [
            SamplingRow(text, NUM_PROMPT, seed, **self.options)  # type: ignore[arg-type]
            for seed, text in enumerate(tokens)
        ]


PENALTIES: dict[str, float | int] = {
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.2,
    "presence_penalty": 0.1,
}
CHOICES = (
    Choice("greedy", {"temperature": 0.0}),
    Choice("no filter"),
    Choice("top-k 50", {"top_k": 50}),
    Choice("top-p 0.95", {"top_p": 0.95}),
    Choice("top-p 0.95 at T 0.7", {"top_p": 0.95, "temperature": 0.7}),
    Choice("top-k 50, top-p", {"top_k": 50, "top_p": 0.95}),
    Choice("penalties, top-p", {"top_p": 0.95, **PENALTIES}),
    Choice("greedy, logprobs", {"temperature": 0.0, "logprobs": 5}),
)


@dataclass(frozen=True)
class SamplingFigures:
    """The figures of one case: times of a call, and the share of reading the logits once at the machine's rate."""

    choice: str
    law: str
    num_rows: int
    native_us: Samples
    torch_us: Samples
    gbps: float
    fraction_of_read: float

    def row(self) -> tuple[str, ...]:
        return (
            self.choice,
            self.law,
            str(self.num_rows),
            self.native_us.text(),
            self.torch_us.text(),
            self.torch_us.over(self.native_us).text(1),
            f"{self.gbps:.1f}",
            f"{self.fraction_of_read:.0%}",
        )

    def to_json(self) -> dict[str, object]:
        times = {"native_us": self.native_us.to_json("us"), "torch_us": self.torch_us.to_json("us")}
        ratio = self.torch_us.over(self.native_us).to_json("ratio")
        return {**asdict(self), **times, "torch_over_native": ratio}


def laws(num_rows: int, vocab_size: int) -> dict[str, Tensor]:
    """Logits (num_rows, vocab_size) float32 of each law."""
    random = torch.Generator().manual_seed(0)
    ranks = torch.rand(num_rows, vocab_size, generator=random).argsort(dim=1)
    falling = -FALL_PER_DOUBLING * torch.log2(1.0 + ranks)
    return {"peaked": falling, "flat": torch.randn(num_rows, vocab_size, generator=random)}


class TorchSampler:
    """The same choices by operations of torch over the whole batch: softmax, sort, cumulative sums, a draw."""

    def __init__(self, logits: Tensor, rows: Sequence[SamplingRow]) -> None:
        self._logits, self._choice = logits, rows[0]
        self._tokens = torch.from_numpy(np.stack([row.tokens for row in rows])).long()
        self._random = torch.Generator().manual_seed(0)

    def sample(self) -> Tensor:
        """The token of each row, (num_rows,)."""
        choice = self._choice
        scores = self._penalised() if choice.has_penalties else self._logits
        if choice.temperature == 0:
            chosen = scores.argmax(dim=1)
        else:
            weights = torch.softmax(self._filtered(scores / choice.temperature), dim=1)
            chosen = torch.multinomial(weights, 1, generator=self._random)[:, 0]
        if choice.logprobs is not None:
            self._rank(chosen, choice.logprobs)
        return chosen

    def kept(self) -> Tensor:
        """Which tokens may be drawn, (num_rows, vocab_size) bool."""
        scores = self._penalised() if self._choice.has_penalties else self._logits
        return self._filtered(scores / self._choice.temperature) > -math.inf

    def _penalised(self) -> Tensor:
        choice, scores = self._choice, self._logits.clone()
        values = scores.gather(1, self._tokens)
        penalty = choice.repetition_penalty
        scores.scatter_(1, self._tokens, torch.where(values > 0, values / penalty, values * penalty))
        output = self._tokens[:, choice.num_prompt :]
        counts = torch.zeros_like(scores).scatter_add_(1, output, torch.ones_like(output, dtype=scores.dtype))
        return scores - choice.frequency_penalty * counts - choice.presence_penalty * (counts > 0)

    def _filtered(self, scores: Tensor) -> Tensor:
        choice = self._choice
        if choice.top_k > 0:
            scores = scores.masked_fill(scores < scores.topk(choice.top_k, dim=1).values[:, -1:], -math.inf)
        if choice.top_p < 1:
            ordered, places = scores.sort(dim=1, descending=True)
            mass = torch.softmax(ordered, dim=1)
            beyond = mass.cumsum(dim=1) - mass >= choice.top_p
            scores = scores.masked_fill(beyond.scatter(1, places, beyond), -math.inf)
        return scores

    def _rank(self, chosen: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        logprobs = torch.log_softmax(self._logits, dim=1)
        own = logprobs.gather(1, chosen[:, None])
        return own, (logprobs > own).sum(dim=1) + 1, logprobs.topk(count, dim=1).values


def check(choice: Choice, logits: Tensor, rows: Sequence[SamplingRow], sampled: Sequence[SampledRow]) -> None:
    """Raises BenchError unless the native tokens are the reference's, and torch chooses among the same."""
    if list(sampled) != reference_sample(logits, rows):
        raise BenchError(f"{choice.name}: the native sampler's tokens are not those of its reference")
    peer = TorchSampler(logits, rows)
    if rows[0].temperature == 0:
        if peer.sample().tolist() != [found.token for found in sampled]:
            raise BenchError(f"{choice.name}: torch's likeliest tokens are not those of the reference")
    elif not rows[0].has_penalties:
        for place, (keeps, row) in enumerate(zip(peer.kept(), rows, strict=True)):
            own = torch.zeros_like(keeps)
            own[torch.from_numpy(filtered(logits[place].numpy(), row)[0])] = True
            apart = torch.softmax(logits[place] / row.temperature, dim=0)[own != keeps].sum().item()
            if apart > LARGEST_MASS_APART:
                raise BenchError(
                    f"{choice.name}: torch keeps other tokens than the reference: {apart:.1e} of the mass"
                )


def measure(
    pool: ThreadPool,
    choice: Choice,
    law: str,
    logits: Tensor,
    read_gbps: float,
    seconds: float,
    progress: Progress | None,
) -> SamplingFigures:
    """Checks a case, then times both sides in turns for about `seconds`."""
    rows = choice.rows(*logits.shape)
    peer = TorchSampler(logits, rows)

    def ours() -> list[SampledRow]:
        return native_sample(pool, logits, rows)

    check(choice, logits, rows, ours())
    times = time_in_turns(ours, peer.sample, seconds, MOST_ROUNDS, progress)
    native_us, torch_us = (Samples(tuple(1e6 * value_s for value_s in side.values)) for side in times)
    gbps = logits.nbytes / native_us.median * 1e-3
    return SamplingFigures(choice.name, law, len(rows), native_us, torch_us, gbps, gbps / read_gbps)


def run(threads: int, seconds: float, quick: bool = False, progress: Progress | None = None) -> Report:
    """Every case, `seconds` for each.

    Raises: BenchError when tokens are not the reference's.
    """
    torch.set_num_threads(threads)
    seconds = min(seconds, QUICK_S) if quick else seconds
    vocab_size, counts = (QUICK_VOCAB_SIZE, QUICK_NUM_ROWS) if quick else (VOCAB_SIZE, NUM_ROWS)
    read_gbps = native.measure_limit("read_gbps", threads, min(seconds, 0.5))
    by_law = laws(max(counts), vocab_size)
    cases = [(choice, law, count) for choice in CHOICES for law in by_law for count in counts]
    pool = ThreadPool(threads)
    try:
        found = [
            measure(
                pool,
                choice,
                law,
                by_law[law][:count],
                read_gbps,
                seconds,
                part_of(progress, place, len(cases)),
            )
            for place, (choice, law, count) in enumerate(cases)
        ]
    finally:
        pool.close()
    return report(found, threads, vocab_size, read_gbps)


def report(found: Sequence[SamplingFigures], threads: int, vocab_size: int, read_gbps: float) -> Report:
    """One row for each case."""
    isa = native.selected_isa()
    return Report(
        name="sampling",
        title=f"One token for each row of {vocab_size:,} logits, {threads} threads, {isa} (measured)",
        columns=("choice", "logits", "rows", "native us", "torch us", "torch / native", "GB/s", "of read"),
        rows=tuple(figures.row() for figures in found),
        notes=(
            "medians of interleaved calls (quartiles); native: the call from Python, parameters and results included",
            f"GB/s: of reading the logits once; of read: of the {read_gbps:.1f} GB/s that a loop of reads reaches",
            "torch: softmax, sort, cumulative sums and multinomial, as libraries in Python sample on a CPU",
        ),
        results={
            "threads": threads,
            "vocab_size": vocab_size,
            "features": native.instruction_sets(),
            "read_gbps": read_gbps,
            "cases": [figures.to_json() for figures in found],
        },
    )
