"""`interlace kv-sim`: which part of a service's prompts a cache would have held, and what it would have saved."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interlace.cli import console
from interlace.errors import BlockTraceError

if TYPE_CHECKING:
    from rich.table import Table

    from interlace.cache.simulator import Simulated
    from interlace.cache.sweep import Point, Sweep
    from interlace.cli.kv_servers import Servers

TUNED = "Servers by a wave table, as in `tune`"

TraceArgument = Annotated[
    Path, typer.Argument(help="Requests in Mooncake's form: a JSON object a line.", metavar="TRACE.jsonl")
]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option("--policy", help="May be repeated; all without it.", metavar="lru|tinylfu|belady"),
]
TierOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tier",
        help="From the top down, may be repeated. One without a size is tried in many. TIMING is one of "
        "`emucxl presets`, or 12GB/s,5us; without it, reads cost nothing. By default: local.",
        metavar="NAME[:SIZE][@TIMING]",
    ),
]
SizesOption = Annotated[
    str | None,
    typer.Option(help="Sizes to try: blocks (1000), bytes (64GB) or unlimited.", metavar="SIZE,SIZE,..."),
]

TunedOption = Annotated[
    str | None,
    typer.Option(
        help="Modelled: servers as this machine's wave table has them, which `interlace tune` measures for this model.",
        metavar="MODEL",
        rich_help_panel=TUNED,
    ),
]
TpOption = Annotated[int, typer.Option(help="Ranks of each server.", rich_help_panel=TUNED)]


def kv_sim(
    trace: TraceArgument,
    policy: PolicyOption = None,
    tier: TierOption = None,
    sizes: SizesOption = None,
    block_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a block of the trace.")] = 512,
    kv_bytes_per_token: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Keys and values of a token; absent: those of the model of --tuned, or Llama-3-8B's in bfloat16.",
        ),
    ] = None,
    prefill_rate: Annotated[
        float | None,
        typer.Option(help="Modelled: tokens of prompts a second, of each server; absent: 10,000."),
    ] = None,
    servers: Annotated[int, typer.Option(min=1, help="Modelled: servers that share the cache.")] = 8,
    tinylfu_sample: Annotated[
        int, typer.Option(min=1, help="TinyLFU halves its counts after so many blocks per block of capacity.")
    ] = 10,
    tuned: TunedOption = None,
    tp: TpOption = 1,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", rich_help_panel=TUNED)] = "auto",
    dtype: Annotated[
        str, typer.Option(metavar="auto|float32|bfloat16|float16", rich_help_panel=TUNED)
    ] = "auto",
    quantize: Annotated[
        str, typer.Option(metavar="auto|none|stored|int8|int4|fp8", rich_help_panel=TUNED)
    ] = "auto",
    chart: Annotated[
        Path | None, typer.Option(help="Draw both figures against bytes.", metavar="FILE.svg")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run a block trace through caches of many sizes, in virtual time: hit rate, and modelled time to first token."""
    from interlace.cache.block_trace import BlockTrace
    from interlace.cache.policies import POLICIES
    from interlace.cache.simulator import Pricing
    from interlace.cache.sweep import Sweep
    from interlace.cache.tier_spec import Size, TierSpec
    from interlace.cli.kv_servers import chosen_servers

    tiers = [TierSpec.parse(text) for text in tier or ["local"]]
    server = chosen_servers(prefill_rate, tuned, tp, dtype, quantize, device)
    block_bytes = block_tokens * (kv_bytes_per_token or server.kv_bytes_per_token)
    pricing = Pricing(server.prefill, servers, block_bytes, [tier.timing for tier in tiers])
    asked_sizes = [Size.parse(text.strip()) for text in sizes.split(",")] if sizes is not None else []
    sweep = Sweep(
        BlockTrace.read(trace, block_tokens),
        list(dict.fromkeys(policy or POLICIES)),
        tiers,
        asked_sizes,
        pricing,
        tinylfu_sample,
    )
    with console.working("simulating", console.is_progress_shown()):
        without = sweep.without_cache()
        begun_s = time.thread_time()
        points = list(sweep.run())
        rate = len(points) * len(sweep.trace.asked) / max(1e-9, time.thread_time() - begun_s)
    report = _report(trace.name, sweep, server, without, points, rate)
    if chart is not None:
        _write(chart, report)
    if as_json:
        console.show_json(report)
    else:
        _print_header(sweep, trace.name, server, without)
        console.show("", _table(sweep, points))
        print(f"\n* modelled. {rate:,.0f} blocks simulated a second of processor time, measured")


def _report(
    name: str,
    sweep: Sweep,
    server: Servers,
    without: Simulated,
    points: list[Point],
    blocks_per_s: float,
) -> dict[str, Any]:
    """The object that --json prints."""
    from interlace.cache.policies import POLICIES

    trace, pricing = sweep.trace, sweep.pricing
    return {
        "trace": {
            "name": name,
            "num_requests": trace.num_requests,
            "num_asked": len(trace.asked),
            "num_distinct": trace.num_distinct,
            "prompt_tokens": sum(trace.prompt_tokens),
            "span_s": trace.arrivals_s[-1] - trace.arrivals_s[0],
            "block_tokens": trace.block_tokens,
        },
        "modelled": {
            "block_bytes": pricing.block_bytes,
            **server.facts,
            "num_servers": pricing.num_servers,
            "tiers": [{"name": tier.name, "timing": tier.timing_text or None} for tier in sweep.tiers],
            "what": "ttft and busy_fraction; hits are counted",
        },
        "titles": {policy: POLICIES[policy].title for policy in sweep.policies},
        "swept": None if sweep.swept is None else sweep.tiers[sweep.swept].name,
        "without_cache": _times(without),
        "points": [_point(sweep, point) for point in points],
        "simulated_blocks_per_cpu_s": blocks_per_s,
    }


def _point(sweep: Sweep, point: Point) -> dict[str, Any]:
    held = [
        sweep.trace.num_distinct if blocks is None else blocks for blocks in point.capacities
    ]  # without a limit: as many as there are
    at = sweep.swept
    return {
        "policy": point.policy,
        "capacity_blocks": list(point.capacities),
        "swept_bytes": None if at is None else held[at] * sweep.pricing.block_bytes,
        "hit_rate": point.found.hit_rate,
        "hits": list(point.found.hits),
        **_times(point.found),
    }


def _times(found: Simulated) -> dict[str, float]:
    return {
        "mean_ttft_s": found.mean_ttft_s,
        "p50_ttft_s": found.ttft_quantile_s(0.5),
        "p99_ttft_s": found.ttft_quantile_s(0.99),
        "busy_fraction": found.busy_fraction,
    }


def _print_header(sweep: Sweep, name: str, server: Servers, without: Simulated) -> None:
    trace, pricing = sweep.trace, sweep.pricing
    span_s = trace.arrivals_s[-1] - trace.arrivals_s[0]
    print(
        f"trace     {name}: {trace.num_requests:,} requests in {span_s:,.0f} s, {len(trace.asked):,} blocks asked for, "
        f"{trace.num_distinct:,} distinct"
    )
    print(f"block     {trace.block_tokens:,} tokens, {console.megabytes(pricing.block_bytes)}")
    for tier, capacity in zip(sweep.tiers, sweep.capacities()[0], strict=True):
        size = "tried in the sizes below" if tier.size is None else _size(capacity, pricing.block_bytes)
        print(
            f"tier      {tier.name}: {size}; reads {f'as {tier.timing_text}*' if tier.timing else 'cost nothing'}"
        )
    print(f"servers*  {pricing.num_servers} {server.text}")
    print(
        f"no cache  TTFT* {without.mean_ttft_s:.3f} s in the mean, servers busy* {without.busy_fraction:.0%}"
    )


def _size(blocks: int | None, block_bytes: int) -> str:
    return "unlimited" if blocks is None else f"{blocks:,} blocks, {console.megabytes(blocks * block_bytes)}"


def _table(sweep: Sweep, points: list[Point]) -> Table:
    """A row for each policy at each size of the tier that is tried; the other tiers are in the header."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    at = sweep.swept
    sizes = [] if at is None else [f"{sweep.tiers[at].name}, blocks", "GB"]
    tiers = [f"in {tier.name}" for tier in sweep.tiers] if len(sweep.tiers) > 1 else []
    for heading in (*sizes, "policy", "hits", *tiers, "TTFT* s", "p50*", "p99*", "busy*"):
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for point in points:
        found = point.found
        of_tiers = [hits / max(1, found.num_asked) for hits in found.hits] if tiers else []
        is_first = point.policy == sweep.policies[0]
        table.add_row(
            *(
                _size_cells(point.capacities[at], sweep.pricing.block_bytes, is_first)
                if at is not None
                else ()
            ),
            point.policy,
            *(f"{100 * share:.2f} %" for share in (found.hit_rate, *of_tiers)),
            f"{found.mean_ttft_s:.3f}",
            f"{found.ttft_quantile_s(0.5):.3f}",
            f"{found.ttft_quantile_s(0.99):.3f}",
            f"{found.busy_fraction:.0%}",
        )
    return table


def _size_cells(blocks: int | None, block_bytes: int, is_first: bool) -> tuple[str, str]:
    """Blocks and GB, once for all policies."""
    if not is_first:
        return "", ""
    return ("unlimited", "-") if blocks is None else (f"{blocks:,}", f"{blocks * block_bytes / 1e9:,.1f}")


def _write(path: Path, report: dict[str, Any]) -> None:
    from interlace.cli.kv_chart import draw

    try:
        path.write_text(draw(report), encoding="utf-8")
    except OSError as error:
        raise BlockTraceError(f"the chart {path} cannot be written: {error.strerror}") from error
