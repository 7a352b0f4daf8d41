"""`interlace bench trace`: a block trace, scaled down, on a live engine, beside what the trace allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interlace.cli import console
from interlace.cli.options import with_engine_options
from interlace.engine.config import EngineConfig
from interlace.errors import BenchError

if TYPE_CHECKING:
    from rich.table import Table

    from interlace.cache.block_trace import BlockTrace
    from interlace.cache.scaled_trace import ScaledTrace
    from interlace.cli.bench.replay import Pace, Replayed
    from interlace.engine.protocols import Ranks

CONCURRENCY = 8


@with_engine_options
def trace(
    trace: Annotated[
        Path, typer.Argument(help="Requests in Mooncake's form, or recorded.", metavar="TRACE.jsonl")
    ],
    *,
    block_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a block of the trace.")] = 512,
    tokens_per_block: Annotated[
        int, typer.Option(help="Tokens of it on the engine: a multiple of 16, the tokens of its blocks.")
    ] = 16,
    requests: Annotated[
        int, typer.Option(min=1, help="About so many: whole conversations, drawn from all of the trace.")
    ] = 300,
    output_tokens: Annotated[
        int, typer.Option(min=1, help="Generate at most so many for each; outputs are scaled as prompts are.")
    ] = 32,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Requests at a time, one after the other; absent: 8, any with --speed."),
    ] = None,
    speed: Annotated[
        float | None, typer.Option(help="Send them by their timestamps, so many times as fast.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    engine: EngineConfig,
) -> None:
    """Replay a block trace, scaled down, on a live engine: its hit rate, beside that of LRU in any capacity."""
    from interlace.cache.block_trace import BlockTrace

    if speed is not None and not 0 < speed < math.inf:
        raise BenchError(f"got speed={speed:g}; expected a number above 0")
    whole = BlockTrace.read(trace, block_tokens)
    report = measure(engine, whole, tokens_per_block, requests, output_tokens, concurrency, speed)
    report["trace"]["name"] = trace.name
    if as_json:
        console.show_json(report)
        return
    _print_header(report, engine.model)
    console.show("", _curve(report))
    _print_live(report)


def measure(
    config: EngineConfig,
    whole: BlockTrace,
    tokens_per_block: int,
    num_requests: int,
    most_output: int,
    concurrency: int | None,
    speed: float | None,
) -> dict[str, Any]:
    """Plays the trace `whole` on an engine of its own. Returns what --json prints, but for the trace's name.

    Raises:
        BlockTraceError: it cannot be scaled so.
        InterlaceError: the engine cannot be started, or fails.
    """
    from interlace.cache.sample import sampled
    from interlace.cache.scaled_trace import ENGINE_BLOCK, ScaledTrace
    from interlace.cli.bench.replay import replay
    from interlace.engine.engine import Engine
    from interlace.engine.ranks.launch import start

    with console.working(f"loading {config.model}", console.is_progress_shown()):
        ranks = start(config)
    try:
        room = min(ranks.max_model_len, ranks.num_blocks * ENGINE_BLOCK)
        scaled = ScaledTrace.of(sampled(whole, num_requests), tokens_per_block, room, most_output)
        vocab_size = ranks.model_config.vocab_size
        prompts = [scaled.prompt(request, vocab_size) for request in range(scaled.num_requests)]
        pace = _pace(scaled, concurrency, speed)
        engine = Engine(ranks, config)
        try:
            with console.progress("replaying") as progress:
                found = replay(engine, prompts, scaled.output_tokens, pace, progress)
        finally:
            engine.fail(BenchError("the replay is over"))
        report = _report(scaled, found, _Capacity(ranks.num_blocks, _tiers(config, ranks)))
        report["trace"]["num_requests_in_file"] = whole.num_requests
        return report | {"engine": ranks.describe(), "pace": _told(pace, speed)}
    finally:
        ranks.close()


def _pace(scaled: ScaledTrace, concurrency: int | None, speed: float | None) -> Pace:
    from interlace.cli.bench.replay import Pace

    if speed is None:
        return Pace(concurrency or CONCURRENCY)
    arrivals_s = scaled.whole.arrivals_s
    return Pace(concurrency or math.inf, [(each - arrivals_s[0]) / speed for each in arrivals_s])


def _told(pace: Pace, speed: float | None) -> dict[str, Any]:
    return {"concurrency": None if math.isinf(pace.concurrency) else pace.concurrency, "speed": speed}


@dataclass(frozen=True)
class _Capacity:
    """Blocks of 16 tokens that an engine has memory for."""

    local: int
    tiers: dict[str, int]  # by name, from the top

    @property
    def total(self) -> int:
        return self.local + sum(self.tiers.values())


def _tiers(config: EngineConfig, ranks: Ranks) -> dict[str, int]:
    return {spec.name: blocks for spec, blocks in zip(config.tier_specs, ranks.tier_capacities, strict=True)}


def _report(scaled: ScaledTrace, found: Replayed, capacity: _Capacity) -> dict[str, Any]:
    from interlace.cache.scaled_trace import ENGINE_BLOCK
    from interlace.cache.sweep import default_sizes

    asked = scaled.in_engine_blocks
    num_asked_tokens = max(1, len(asked.asked) * ENGINE_BLOCK)
    sizes = {*default_sizes(asked.num_distinct), capacity.total}
    ascending = sorted(sizes, key=lambda size: math.inf if size is None else size)
    rates = {size: scaled.lru_hit_rate(size) for size in ascending}
    live = sum(found.num_cached) / num_asked_tokens
    return {
        "trace": {"num_requests": scaled.num_requests, "block_tokens": scaled.whole.block_tokens},
        "scaled": {
            "tokens_per_block": scaled.block_tokens,
            "num_cut": scaled.num_cut,
            "num_asked": len(asked.asked),
            "num_distinct": asked.num_distinct,
            "num_prompt_tokens": sum(asked.prompt_tokens),
            "num_output_tokens": sum(scaled.output_tokens),
        },
        "capacity_blocks": {"local": capacity.local, "tiers": capacity.tiers, "total": capacity.total},
        "live": {
            "what": "measured",
            "hit_rate": live,
            "hit_rate_of_tiers": found.num_fetched / num_asked_tokens,
            "num_cached_tokens": sum(found.num_cached),
            "of_lru": _ratio(live, rates[capacity.total]),
            "of_unlimited": _ratio(live, rates[None]),
            "num_preemptions": found.num_preemptions,
            "total_s": found.total_s,
            "ttft_s": {
                "mean": math.fsum(found.ttft_s) / len(found.ttft_s),
                "p50": found.ttft_s[len(found.ttft_s) // 2],
                "max": found.ttft_s[-1],
            },
        },
        "curve": [{"blocks": size, "lru_hit_rate": rate} for size, rate in rates.items()],
    }


def _ratio(live: float, allowed: float) -> float | None:
    return live / allowed if allowed else None


def _print_header(report: dict[str, Any], model: str) -> None:
    from interlace.cli.report import weights_text

    trace, scaled, ranks, live = (report[each] for each in ("trace", "scaled", "engine", "live"))
    print(
        f"trace     {trace['name']}: {trace['num_requests']:,} of {trace['num_requests_in_file']:,} requests, blocks "
        f"of {trace['block_tokens']:,} tokens scaled to {scaled['tokens_per_block']:,}"
    )
    cut = f"; {scaled['num_cut']:,} prompts cut to fit" if scaled["num_cut"] else ""
    print(
        f"prompts   {scaled['num_prompt_tokens']:,} tokens, {scaled['num_asked']:,} blocks of the engine asked for, "
        f"{scaled['num_distinct']:,} distinct{cut}"
    )
    count, tiers = len(ranks["ranks"]), report["capacity_blocks"]["tiers"]
    below = "".join(f", {blocks:,} in {name}" for name, blocks in tiers.items())
    print(
        f"engine    {model}, {count} rank{'s' * (count > 1)}, {weights_text(ranks['weights'])}{ranks['dtype']}; "
        f"{report['capacity_blocks']['local']:,} blocks of 16 tokens{below}"
    )
    pace, ttft = report["pace"], live["ttft_s"]
    total = f"{live['total_s']:,.1f} s, {scaled['num_output_tokens']:,} tokens of output"
    sent = [f"{pace['concurrency']} at a time"] if pace["concurrency"] else []
    sent += [f"by their timestamps, {pace['speed']:g} times as fast"] if pace["speed"] else []
    print(
        f"replayed  {' and '.join(sent)} in {total}; "
        f"TTFT {ttft['mean']:.3f} s in the mean, {ttft['max']:.3f} at most"
    )


def _curve(report: dict[str, Any]) -> Table:
    """A row for each capacity; the engine's has both figures."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("capacity, blocks", "LRU, simulated", "live, measured"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in report["curve"]:
        blocks = point["blocks"]
        is_live = blocks == report["capacity_blocks"]["total"]
        table.add_row(
            "unlimited" if blocks is None else f"{blocks:,}",
            f"{100 * point['lru_hit_rate']:.2f} %",
            f"{100 * report['live']['hit_rate']:.2f} %" if is_live else "",
        )
    return table


def _print_live(report: dict[str, Any]) -> None:
    live = report["live"]
    if live["of_unlimited"] is None:
        print("\nno prompt has a block of an earlier one: there is nothing to find")
        return
    of_lru = "" if live["of_lru"] is None else f"{live['of_lru']:.3f} of what LRU finds in as many blocks, "
    tiers = (
        f"; {100 * live['hit_rate_of_tiers']:.2f} % came from tiers"
        if report["capacity_blocks"]["tiers"]
        else ""
    )
    print(f"\nlive: {of_lru}{live['of_unlimited']:.3f} of what the trace allows without a limit{tiers}")
