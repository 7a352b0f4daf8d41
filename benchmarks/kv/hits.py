"""Hits: a prompt whose beginning is in memory below the KV cache, in it, or nowhere, beside vLLM's own hit.

The tier is this machine's memory, not modelled. Fetches are timed alone as well, beside a strided copy by NumPy of the
same blocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.harness.target import Target
from benchmarks.kv.setting import Setting, check_same, first_ms, less
from benchmarks.kv.transfer import LoneFetch
from benchmarks.serve.participant import Participant
from benchmarks.serve.prefix import first_s
from emucxl.bench.harness import Progress, Report, Samples, interleaved, part_of
from interlace.cli.bench.kv import in_turns, rate_gbps
from interlace.cli.bench.tiered import Answer, TieredEngine
from interlace.cli.bench.workload import whole_blocks
from interlace.cli.report import weights_text

TIER, LOCAL, COMPUTED, PEER = "in the DRAM tier", "in local memory", "computed", "vLLM's own hit"
FETCH, COPY = "fetch alone", "strided copy by NumPy"
COPY_ROUNDS = 3  # times the rounds of prompts: a copy takes milliseconds
CHECKED_END = 900_000
MOST_MORE_MS, LEAST_GBPS, LEAST_OF_COPY = 15.0, 4.0, 0.85
MOST_OF_COMPUTED = 0.05


@dataclass
class Hits:
    """The answers by where the beginning was, and seconds of the copies; a value for each round."""

    answers: dict[str, list[Answer]]
    copies_s: dict[str, Samples]
    size_bytes: int  # of the beginning, on one rank
    format: str = ""  # of Interlace's weights and values

    @property
    def more_ms(self) -> Samples:
        """By how much a hit in the tier is later than one in local memory."""
        return less(first_ms(self.answers[TIER]), first_ms(self.answers[LOCAL]))

    @property
    def of_copy(self) -> Samples:
        """The speed of a fetch over that of NumPy's copy."""
        return self.copies_s[COPY].over(self.copies_s[FETCH])

    def gbps(self, name: str) -> Samples:
        return Samples(tuple(self.size_bytes / seconds / 1e9 for seconds in self.copies_s[name].values))

    def targets(self) -> list[Target]:
        answers = self.answers
        local = first_ms(answers[LOCAL])
        found = [
            Target("hit in local memory / computed", local.over(first_ms(answers[COMPUTED])), MOST_OF_COMPUTED, True),
            Target("hit in DRAM - hit in local memory, ms", self.more_ms, MOST_MORE_MS, at_most=True),
            Target("fetch alone from DRAM, GB/s", self.gbps(FETCH), LEAST_GBPS),
            Target("fetch alone / strided copy, speed", self.of_copy, LEAST_OF_COPY),
        ]  # fmt: skip
        if PEER in answers:
            beside = local.over(first_ms(answers[PEER]))
            found.append(Target("hit in local memory / vLLM's own hit", beside, 1.0, at_most=True))
        return found


def measure(
    setting: Setting, plain: TieredEngine, peer: Participant | None, progress: Progress | None = None
) -> Hits:
    """`plain` has no tier.

    Raises:
        BenchError: what is fetched gives other answers.
    """
    with contextlib.closing(setting.engine(setting.memory())) as tiered:
        tiered.prepare()
        check_same([tiered], plain, CHECKED_END)
        ways: dict[str, Callable[[], Answer]] = {
            TIER: tiered.hit,
            LOCAL: tiered.local_hit,
            COMPUTED: plain.computed,
        }
        if peer is not None:
            ways[PEER] = peer_hits(setting, peer, plain.ranks.model_config.vocab_size)
        answers = in_turns(ways, setting.rounds, part_of(progress, 0, 2))
        copies, size_bytes = measure_copies(setting, setting.memory(), tiered, part_of(progress, 1, 2))
    described = plain.ranks.describe()
    weights = f"{weights_text(str(described['weights']))}{described['dtype']}"
    return Hits(answers, copies, size_bytes, weights)


def peer_hits(setting: Setting, peer: Participant, vocab_size: int) -> Callable[[], Answer]:
    """Asks a peer for prompts of a beginning that it has computed by now."""
    ends = count()

    def hit() -> Answer:
        return Answer(first_s(peer, setting.shapes.prompt(0, next(ends), vocab_size)), [])

    hit()
    return hit


def measure_copies(
    setting: Setting, tier: str, engine: TieredEngine, progress: Progress | None = None
) -> tuple[dict[str, Samples], int]:
    """Seconds of fetches alone and of NumPy's copies in turns, and the bytes of each."""
    num_blocks = setting.shapes.num_found // whole_blocks(1)
    with contextlib.closing(LoneFetch(tier, engine.ranks.runner.cache.tensor, num_blocks)) as lone:
        lone.check()
        rounds = COPY_ROUNDS * setting.rounds
        return interleaved({FETCH: lone.fetch, COPY: lone.copy}, rounds, progress), lone.size_bytes


def reports(setting: Setting, hits: Hits) -> list[Report]:
    """The table of first tokens, and that of copies."""
    shapes, local = setting.shapes, first_ms(hits.answers[LOCAL])
    rows, results = [], dict[str, object]()
    for name, answers in hits.answers.items():
        first = first_ms(answers)
        more = "" if name == LOCAL else less(first, local).extremes_text(1)
        rows.append((name, first.extremes_text(1), more, f"{answers[-1].num_fetched:,}"))
        results[name] = first.to_json("ms")
    within = [answer for answer in hits.answers[TIER] if answer.fetch_s]
    copies = [
        (
            name,
            Samples(tuple(1e3 * s for s in seconds.values)).extremes_text(1),
            hits.gbps(name).extremes_text(2),
        )
        for name, seconds in hits.copies_s.items()
    ]
    if within:
        beside = Samples(tuple(map(rate_gbps, within)))
        beside_ms = Samples(tuple(1e3 * answer.fetch_s for answer in within))
        copies.insert(0, ("fetch beside its pass", beside_ms.extremes_text(1), beside.extremes_text(2)))
        results["fetch_beside_its_pass"] = beside.to_json("GB/s")
    title = (
        f"{setting.model}: first token of {shapes.num_tokens:,} tokens, {shapes.num_found:,} of them known"
    )
    return [
        Report(
            name="kv",
            title=f"{title}; {setting.threads} threads (measured)",
            columns=(
                "the known ones are",
                "first token ms",
                "more than in local memory ms",
                "fetched tokens",
            ),
            rows=tuple(rows),
            notes=(
                f"medians (extremes) of {setting.rounds} rounds in turns; the tier is memory, not modelled",
                f"Interlace: {hits.format}; vLLM, where it ran: bfloat16",
            ),
            results={"model": setting.model, "threads": setting.threads, "format": hits.format, **results},
        ),
        Report(
            name="kv",
            title=f"{hits.size_bytes / 1e6:,.1f} MB of keys and values from a DRAM tier (measured)",
            columns=("by", "ms", "GB/s"),
            rows=tuple(copies),
            notes=(
                f"the pieces of the copies are the same; fetch over copy, in speed: {hits.of_copy.extremes_text(2)}",
                "beside its pass: from asking for the first layer to the arrival of the last, while all cores compute",
            ),
            results={
                "size_bytes": hits.size_bytes,
                **{name: seconds.to_json("s") for name, seconds in hits.copies_s.items()},
            },
        ),
    ]


def start_peer(setting: Setting, python: str, directory: Path) -> Participant:
    """vLLM, as `make bench prefix` runs it."""
    from benchmarks.serve.interpreters import Interpreters
    from benchmarks.serve.prefix import start
    from benchmarks.serve.systems import SYSTEMS
    from interlace.models.sources import load_model

    (system,) = (system for system in SYSTEMS if system.name == "vllm-bf16")
    pythons = Interpreters(python)
    return start(system, load_model(setting.model), directory, pythons, setting.threads, setting.shapes)
