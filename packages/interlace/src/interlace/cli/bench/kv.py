"""`interlace bench kv`: what tiers below the KV cache save on this machine, with a model of one's own.

Each tier is measured alone, below a local memory of one prompt: a prompt whose beginning the tier has, one whose
beginning is in local memory, and one that is computed, in turns.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interlace.cli import console
from interlace.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from emucxl.bench.harness import Kind, Progress, Report, Samples
    from interlace.cli.bench.tiered import Answer, TieredEngine
    from interlace.cli.bench.workload import PrefixShapes

DEFAULT_TIERS = ("dram:{size}", "cxl:{size}@cxl-direct")
NUM_TEXTS = (
    6  # that a tier has to hold for two to be found there again and again, beside those that are computed
)
NUM_FOUND, NUM_OWN = 2048, 64
QUICK_FOUND, QUICK_OWN = 64, 16
WAYS = ("in the tier", "in local memory", "nowhere")
CHECKED_END = 900_000  # a prompt of its own, which no timed one is


@dataclass
class TierFigures:
    """The requests that were asked of one tier, and what it did in all. Bytes are of rank 0."""

    tier: str
    kind: Kind
    answers: dict[str, list[Answer]] = field(default_factory=dict)  # by way, one for each round
    num_hits: int = 0  # blocks
    fetched_bytes: int = 0
    written_bytes: int = 0
    notices: list[str] = field(default_factory=list)

    def samples(self, way: str, of: Callable[[Answer], float]) -> Samples:
        from emucxl.bench.harness import Samples

        return Samples(tuple(of(answer) for answer in self.answers[way]))

    @property
    def hidden(self) -> Samples | None:
        """The share of each fetch that made its request no slower than the same one found in local memory.

        None where nothing was fetched.
        """
        from emucxl.bench.harness import Samples

        found, local = (self.answers[way] for way in WAYS[:2])
        shares = [
            1 - (one.first_s - other.first_s) / one.fetch_s
            for one, other in zip(found, local, strict=True)
            if one.fetch_s
        ]
        return Samples(tuple(shares)) if shares else None


def kv(
    model: Annotated[
        str, typer.Option("--model", "-m", help="An alias, a directory, a .gguf file or a hub id.")
    ] = "smollm2",
    kv_tier: Annotated[
        list[str] | None,
        typer.Option(
            help="A tier, as in `generate`; may be repeated: each is measured alone. Absent: memory of this machine, "
            "as it is and modelled as CXL.",
            metavar="TIER",
        ),
    ] = None,
    tp: Annotated[int, typer.Option(help="Ranks to split the model over.")] = 1,
    dtype: Annotated[str, typer.Option(metavar="auto|float32|bfloat16")] = "auto",
    quantize: Annotated[
        str, typer.Option(help="Weights, as in `generate`.", metavar="auto|none|stored|int8|int4")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="Per rank; absent: the cores, shared out.")] = None,
    kv_fetch: Annotated[
        str,
        typer.Option(
            help="always: fetch all that the tier has; auto: as much as is faster than to compute it.",
            metavar="always|auto",
        ),
    ] = "always",
    found: Annotated[int, typer.Option(help="Tokens of a prompt that are found.")] = NUM_FOUND,
    own: Annotated[int, typer.Option(help="Tokens of a prompt that are new.")] = NUM_OWN,
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small shapes: checks that it runs; its times mean nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write DIR/<machine>/engine-kv.json.", metavar="DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Measure tiers below the KV cache: hits, bytes, how long fetches take, and what of them is hidden."""
    from emucxl.bench import harness
    from interlace.cli.bench.tiered import room_text, tiered_config
    from interlace.cli.bench.workload import PrefixShapes

    if rounds < 1 or found < 16 or own < 2:
        raise BenchError(
            f"got rounds={rounds}, found={found}, own={own}; expected at least 1 round, a block of 16 tokens that are "
            f"found, and 2 tokens that are new"
        )
    shapes = PrefixShapes(QUICK_FOUND, QUICK_OWN) if quick else PrefixShapes(found, own)
    options: dict[str, Any] = {"tp": tp, "dtype": dtype, "quantize": quantize, "threads": threads}
    options["kv_fetch"] = kv_fetch
    figures = []
    with console.progress("measuring") as progress:
        size = room_text(model, shapes, NUM_TEXTS)
        tiers = kv_tier or [tier.format(size=size) for tier in DEFAULT_TIERS]
        for place, tier in enumerate(tiers):
            told = harness.part_of(progress, place, len(tiers), tier)
            figures.append(measure(tiered_config(model, shapes, [tier], **options), shapes, rounds, told))
    result = report(model, figures, shapes)
    if out is not None:
        typer.echo(f"written: {harness.write_report(result, quick, out, folder='')}", err=True)
    if as_json:
        console.show_json(harness.record(result, quick))
    else:
        console.show(harness.table(result), harness.table(requests(figures)))


def measure(config: Any, shapes: PrefixShapes, rounds: int, progress: Progress | None = None) -> TierFigures:
    """One tier, that of `config`. What it gives is compared with what is computed before anything is timed.

    Raises:
        BenchError: they differ, or nothing was fetched.
    """
    from interlace.cli.bench.tiered import TieredEngine

    (spec,) = config.tier_specs
    with closing(TieredEngine(config, shapes)) as engine:
        engine.prepare()
        if not engine.check_hit(CHECKED_END).num_fetched and config.kv_fetch == "always":
            raise BenchError(
                f"nothing was fetched from the tier {spec.text!r}: expected one with room for two prompts of "
                f"{shapes.num_tokens:,} tokens"
            )
        figures = TierFigures(spec.text, "measured" if spec.timing is None else "modelled")
        figures.notices = engine.notices
        figures.answers = in_turns(
            dict(zip(WAYS, (engine.hit, engine.local_hit, engine.computed), strict=True)), rounds, progress
        )
        _count(engine, figures)
    return figures


def in_turns(
    ways: dict[str, Callable[[], Answer]], rounds: int, progress: Progress | None = None
) -> dict[str, list[Answer]]:
    """The answers of each way, one for each round. The ways keep their order: what one leaves, the next finds."""
    found: dict[str, list[Answer]] = {name: [] for name in ways}
    for number in range(rounds):
        for place, (name, ask) in enumerate(ways.items()):
            if progress is not None:
                progress((number + place / len(ways)) / rounds, name)
            found[name].append(ask())
    return found


def _count(engine: TieredEngine, figures: TierFigures) -> None:
    (tier,) = engine.engine.stats().tiers
    figures.num_hits = tier.num_hit_blocks
    figures.fetched_bytes, figures.written_bytes = tier.fetched_bytes, tier.written_bytes


def report(model: str, figures: Sequence[TierFigures], shapes: PrefixShapes) -> Report:
    """One row for each tier."""
    from emucxl.bench.harness import Report

    num_rounds = len(figures[0].answers[WAYS[0]])
    return Report(
        name="engine-kv",
        title=f"{model}: prompts of {shapes.num_tokens:,} tokens that begin with {shapes.num_found:,} known ones",
        columns=(
            *("tier", "blocks hit", "MB up", "MB down", "fetch ms", "GB/s", "hidden"),
            *("in the tier ms", "local ms", "computed ms"),
        ),
        rows=tuple(_row(each) for each in figures),
        notes=(
            f"Medians (extremes) of {num_rounds} rounds, in which three kinds of prompts take turns, and what their "
            "first tokens took: the beginning was found in the tier, in local memory, or nowhere. Blocks and bytes are "
            "of all requests; bytes are of rank 0.",
            "modelled: the tier is this machine's memory, delayed as the named memory would be; all times of its row "
            "have that in them.",
            "fetch: from asking for the first layer to the arrival of the last, beside the pass. hidden: the share of "
            "it that a request found in local memory would not have been quicker by.",
            *(notice for each in figures for notice in each.notices),
        ),
        results={"model": model, **asdict(shapes), "tiers": [*map(_record, figures)]},
    )


def _row(each: TierFigures) -> tuple[str, ...]:
    megabytes = (f"{size / 1e6:,.1f}" for size in (each.fetched_bytes, each.written_bytes))
    fetch_ms = each.samples(WAYS[0], lambda answer: 1e3 * answer.fetch_s)
    rate, hidden = each.samples(WAYS[0], rate_gbps).median, each.hidden
    firsts = (each.samples(way, lambda answer: 1e3 * answer.first_s).extremes_text(1) for way in WAYS)
    return (
        *(f"{each.tier} ({each.kind})", f"{each.num_hits:,}", *megabytes, fetch_ms.extremes_text(1)),
        *(f"{rate:.2f}", "" if hidden is None else f"{hidden.median:.0%}", *firsts),
    )


def rate_gbps(answer: Answer) -> float:
    """Bytes of rank 0 over the time that they took to come."""
    return answer.fetched_bytes / answer.fetch_s / 1e9 if answer.fetch_s else 0.0


def requests(figures: Sequence[TierFigures]) -> Report:
    """One row for each request that was timed."""
    from emucxl.bench.harness import Report

    return Report(
        name="engine-kv",
        title="Requests",
        columns=(
            *("tier", "beginning found", "tokens found", "fetched", "MB up", "fetch ms", "beside compute"),
            "first token ms",
        ),
        rows=tuple(_request_rows(figures)),
        notes=("beside compute: the share of the fetch that the pass did not stand still for.",),
        results={},
    )


def _request_rows(figures: Sequence[TierFigures]) -> Iterator[tuple[str, ...]]:
    for each in figures:
        for number in range(len(each.answers[WAYS[0]])):
            for way in WAYS:
                answer = each.answers[way][number]
                beside = f"{1 - answer.waited_s / answer.fetch_s:.0%}" if answer.fetch_s else ""
                fetch = f"{1e3 * answer.fetch_s:.1f}" if answer.fetch_s else ""
                yield (
                    *(f"{each.tier.partition(':')[0]} ({each.kind})", way),
                    *(f"{answer.num_cached:,}", f"{answer.num_fetched:,}"),
                    *(f"{answer.fetched_bytes / 1e6:,.1f}", fetch, beside, f"{1e3 * answer.first_s:,.1f}"),
                )


def _record(each: TierFigures) -> dict[str, Any]:
    return {
        "tier": each.tier,
        "kind": each.kind,
        "num_hits": each.num_hits,
        "fetched_bytes": each.fetched_bytes,
        "written_bytes": each.written_bytes,
        "fetch": each.samples(WAYS[0], lambda answer: 1e3 * answer.fetch_s).to_json("ms", each.kind),
        "hidden": None if each.hidden is None else each.hidden.to_json("1", each.kind),
        "requests": {
            way: [
                {name: value for name, value in asdict(answer).items() if name not in ("tokens", "logprobs")}
                for answer in answers
            ]
            for way, answers in each.answers.items()
        },
    }
