"""Setting: what all rows share. The shapes, the engines, and the links that tiers are modelled over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.serve.prefix import NUM_FOUND, NUM_OWN, QUICK_FOUND, QUICK_OWN
from emucxl.bench.harness import Samples
from interlace.cli.bench.tiered import NUM_CHECKED, Answer, TieredEngine, room_text, tiered_config
from interlace.cli.bench.workload import PrefixShapes

NUM_TEXTS = 4  # prompts that a tier has room for
LATENCY = "5us"
MOST_GBPS = 4.0  # of a link; memory itself has to be faster than what is modelled over it


@dataclass(frozen=True)
class Setting:
    """One run: the model, the threads and rounds of each row, and the shapes of its prompts."""

    model: str
    threads: int
    rounds: int
    is_quick: bool
    shapes: PrefixShapes

    @classmethod
    def of(cls, model: str, threads: int, rounds: int, quick: bool) -> Setting:
        shapes = PrefixShapes(QUICK_FOUND, QUICK_OWN) if quick else PrefixShapes(NUM_FOUND, NUM_OWN)
        return cls(model, threads, 1 if quick else rounds, quick, shapes)

    def engine(self, *tiers: str, **options: Any) -> TieredEngine:
        """An engine over `tiers` whose local memory holds one prompt."""
        config = tiered_config(self.model, self.shapes, tiers, threads=self.threads, **options)
        return TieredEngine(config, self.shapes)

    def memory(self) -> str:
        """A tier of this machine's memory, as fast as it is."""
        return f"dram:{room_text(self.model, self.shapes, NUM_TEXTS)}"

    def link(self, bandwidth_gbps: float) -> str:
        """A tier of this machine's memory, modelled to be reached over a link of so many 1e9 bytes per second."""
        size = room_text(self.model, self.shapes, NUM_TEXTS)
        return f"link:{size}@{link_text(bandwidth_gbps)},{LATENCY}"


def link_text(bandwidth_gbps: float) -> str:
    """A bandwidth of three digits, as a link is written."""
    return f"{float(f'{bandwidth_gbps:.3g}') * 1e3:.10g}MB/s"


def first_ms(answers: Sequence[Answer]) -> Samples:
    """Milliseconds to the first token, round by round."""
    return Samples(tuple(1e3 * answer.first_s for answer in answers))


def less(one: Samples, other: Samples) -> Samples:
    """The difference, round by round."""
    return Samples(tuple(a - b for a, b in zip(one.values, other.values, strict=True)))


def check_same(tiered: Sequence[TieredEngine], plain: TieredEngine, end: int) -> list[Answer]:
    """Returns hits in the tiers of engines that were asked alike, compared with the answer of one that has no tier.

    Raises:
        BenchError: the tokens, or the bits of the logprobs, are others.
    """
    answers = [engine.hit(end=end, max_tokens=NUM_CHECKED) for engine in tiered]
    plain.engine.reset_prefix_cache()
    anew = plain.ask(tiered[0].last_text, end, NUM_CHECKED)
    for engine, answer in zip(tiered, answers, strict=True):
        answer.check_same(anew, f"{', '.join(engine.config.kv_tiers)}: {answer.num_fetched} tokens fetched")
    return answers
