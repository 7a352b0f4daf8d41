"""No reuse: what tiers cost where no prompt begins as another did. Prefill and decode, tiers on and off in turns.

Local memory and the tier are small and soon full, as they are in an engine that has run for a while: every block that
is filled is written down, and displaces another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from itertools import count

from benchmarks.harness.target import Target
from benchmarks.kv.setting import Setting
from emucxl.bench.harness import Progress, Report, Samples, interleaved, part_of
from interlace.cli.bench.generation import generate
from interlace.cli.bench.tiered import NUM_CHECKED, TieredEngine, room_text
from interlace.cli.bench.workload import PrefixShapes, ServeWorkload, longest_sequence, whole_blocks
from interlace.engine.config import EngineConfig

WORKLOADS = (ServeWorkload("prefill", 1, 2048, 1), ServeWorkload("decode", 8, 128, 64))
QUICK_WORKLOADS = (ServeWorkload("prefill", 1, 64, 1), ServeWorkload("decode", 2, 16, 4))
ON, OFF = "tiers on", "tiers off"
LEAST_OF_OFF = 0.98
WARM_UPS = 2  # passes of a kind are captured when they come again

Rates = dict[str, dict[str, Samples]]  # tokens per second by workload, with tiers and without


def measure(setting: Setting, progress: Progress | None = None) -> Rates:
    """Warm-ups of each workload, and the rounds.

    Raises:
        BenchError: an answer with tiers has other bits.
    """
    workloads = QUICK_WORKLOADS if setting.is_quick else WORKLOADS
    shapes = PrefixShapes(
        0, max(each.batch * (each.prompt_tokens + each.output_tokens) for each in workloads)
    )
    tier = f"dram:{room_text(setting.model, shapes, num_texts=1)}"
    found: Rates = {}
    with contextlib.ExitStack() as stack:
        engines = {
            name: stack.enter_context(contextlib.closing(_start(setting, workloads, tiers)))
            for name, tiers in ((ON, [tier]), (OFF, []))
        }
        answers = [engine.ask(0, 0, NUM_CHECKED) for engine in engines.values()]
        answers[0].check_same(answers[1], "with tiers")
        seeds = count()
        for place, workload in enumerate(workloads):
            ways = {name: partial(_rate, engine, workload, seeds) for name, engine in engines.items()}
            for way in [*ways.values()] * WARM_UPS:
                way()
            share = part_of(progress, place, len(workloads), workload.name)
            found[workload.name] = interleaved(ways, setting.rounds, share)
    return found


def _start(setting: Setting, workloads: tuple[ServeWorkload, ...], tiers: list[str]) -> TieredEngine:
    room = whole_blocks(longest_sequence(workloads) + NUM_CHECKED)
    most = max(each.batch * whole_blocks(each.prompt_tokens + each.output_tokens) for each in workloads)
    config = EngineConfig(
        setting.model,
        threads=setting.threads,
        max_model_len=room,
        num_kv_blocks=(most + room) // whole_blocks(1),
        kv_tiers=tiers,
    )
    return TieredEngine(config, PrefixShapes(0, whole_blocks(1)))


def _rate(engine: TieredEngine, workload: ServeWorkload, seeds: Iterator[int]) -> float:
    prompts = workload.prompts(engine.ranks.model_config.vocab_size, next(seeds))
    rate = workload.rate(generate(engine.engine, prompts, workload.output_tokens))
    engine.settle()  # what it still writes down would be in the way of the other
    return rate


def targets(found: Rates) -> list[Target]:
    return [
        Target(f"no reuse, {name}: tiers on / off", rates[ON].over(rates[OFF]), LEAST_OF_OFF)
        for name, rates in found.items()
    ]


def report(setting: Setting, found: Rates) -> Report:
    """One row for each workload."""
    return Report(
        name="kv",
        title=f"{setting.model}: prompts without reuse, {setting.threads} threads; a tier of memory (measured)",
        columns=("workload", f"{ON}, tokens/s", f"{OFF}, tokens/s", "on / off"),
        rows=tuple(
            (
                name,
                *(rates[way].extremes_text() for way in (ON, OFF)),
                rates[ON].over(rates[OFF]).extremes_text(3),
            )
            for name, rates in found.items()
        ),
        notes=(
            "medians (extremes); blocks are written down when they are full; local memory and the tier are full",
        ),
        results={
            name: {way: samples.to_json("tokens/s") for way, samples in rates.items()}
            for name, rates in found.items()
        },
    )
