"""`interlace plan`: look at a forward pass before it runs. Reads a model's configuration, never its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from emucxl.cli.command import Group
from interlace.cli import console
from interlace.errors import EngineError

if TYPE_CHECKING:
    from rich.table import Table

    from interlace.cache.kv_tier import KvTierSpec
    from interlace.cli.plan_work import Workload
    from interlace.models.config import ModelConfig
    from interlace.models.weights import WeightSource
    from tokenweave.plan import Plan

app = typer.Typer(cls=Group, no_args_is_help=True, help="Look at the plan of a forward pass.")
NUMBER_OF_ENDS = 2  # the first and the last layer are shown, those between are folded

# The options of the simulated timeline.
SplitOption = Annotated[
    str | None,
    typer.Option(
        help="Where to cut the tokens in two. Draws the simulated timeline too.", metavar="N|middle|none"
    ),
]
LinkOption = Annotated[
    str | None, typer.Option(help="The link between the ranks, for the timeline.", metavar="GB/s,us")
]
TunedOption = Annotated[
    bool,
    typer.Option(
        "--tuned", help="Take the prices of steps from this machine's wave table, not round figures."
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="Whose prices: round figures are a processor's unless it is cuda.", metavar="auto|cpu|cuda"
    ),
]
QuantizeOption = Annotated[
    str,
    typer.Option(
        help="Weights, as in `generate`, for byte counts and prices.",
        metavar="auto|none|stored|int8|int4|fp8",
    ),
]

WeightsTierOption = Annotated[
    str | None,
    typer.Option(help="Fetch layers from a tier, as in `generate`, say cxl:16GB@cxl-direct.", metavar="TIER"),
]
KvTierOption = Annotated[
    str | None,
    typer.Option(
        "--kv-tier",
        help="The memory below the KV cache, as in `generate`, that blocks move to or from.",
        metavar="TIER",
    ),
]
FetchOption = Annotated[
    int, typer.Option(help="Tokens before these whose keys and values come from the tier.", metavar="TOKENS")
]
EvictOption = Annotated[
    int,
    typer.Option(help="Tokens whose keys and values go to the tier first, to make room.", metavar="TOKENS"),
]


@app.callback()
def _group() -> None:
    """Keeps `show` a subcommand of its own."""


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="An alias, a directory, a .gguf file or a hub id.")],
    tokens: Annotated[int, typer.Option(help="Tokens in the forward pass.")] = 512,
    tp: Annotated[int, typer.Option(help="Ranks.")] = 1,
    rank: Annotated[int, typer.Option(help="The rank whose work is shown.")] = 0,
    dtype: Annotated[
        str, typer.Option(help="The number format, for byte counts.", metavar="float32|bfloat16|float16")
    ] = "bfloat16",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = "auto",
    split: SplitOption = None,
    link: LinkOption = None,
    weights_tier: WeightsTierOption = None,
    tuned: TunedOption = False,
    kv_tier: KvTierOption = None,
    fetch: FetchOption = 0,
    evict: EvictOption = 0,
    store: Annotated[
        bool, typer.Option("--store", help="The blocks that the pass fills go to the tier.")
    ] = False,
    every_step: Annotated[bool, typer.Option("--all", help="Do not fold the layers in the middle.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, every step in it.")] = False,
) -> None:
    """Print the plan of a forward pass and the work of each step on one rank; with --split or a tier also when it would
    run."""
    from interlace.cli.plan_costs import round_costs, tuned_costs
    from interlace.cli.plan_moves import PlanMoves
    from interlace.cli.plan_object import json_object
    from interlace.cli.plan_timeline import PlanTimelines
    from interlace.cli.plan_work import Workload, weight_bytes
    from interlace.models.footprint import formats_of, resolve_quantize
    from interlace.models.shard import Shard
    from tokenweave.plan import NO_MOVES, plan_forward

    _check(dtype, tp, quantize, device)
    moves = PlanMoves.of(kv_tier, fetch, evict, tokens, stores=store)
    tier = _weights_tier_of(weights_tier, kv_tier, device)
    source = _source_of(model)
    quantize = resolve_quantize(quantize, dtype, source)
    config, formats = source.config, formats_of(source, quantize)
    at = _split_row(split, tokens, tp, device)
    shards = Shard.all_of(config, tp)
    workloads = [Workload(config, shard, tokens, dtype, at, formats, moves) for shard in shards]
    Shard.of(config, rank, tp)  # refuses a rank that is not there
    block_bytes = max(workload.kv_bytes_per_block for workload in workloads)
    moves.check_room(block_bytes * config.num_layers)
    moved = replace(moves.moves, fetches_weights=tier is not None)
    plan = plan_forward(config.num_layers, tokens, at, moved)
    costs = (
        tuned_costs(source, tp, dtype, quantize, link, device)
        if tuned
        else round_costs(config, shards, dtype, link, weight_bytes(workloads), device)
    )
    if tier is not None:
        costs = costs.with_weights_tier(tier, max(workload.layer_bytes for workload in workloads))
    timelines = PlanTimelines(plan, moved, costs.with_moves(moves.priced(block_bytes)), moves)
    if as_json:
        console.show_json(json_object(model, plan, workloads, rank, timelines))
        return
    _print_header(model, config, workloads)
    console.show("", _ranks_table(workloads), "", _steps_table(plan, workloads[rank], every_step))
    _print_totals(plan, workloads[rank])
    if split is not None or moved != NO_MOVES:
        print("\n".join(timelines.lines(every_step)))


def _check(dtype: str, tp: int, quantize: str, device: str) -> None:
    """Refuses what no model could be planned with, before one is looked for."""
    from interlace.cli.plan_work import DTYPE_BYTES
    from interlace.engine.config import DEVICES, QUANTIZATIONS

    if device not in DEVICES:
        raise EngineError(f"device={device!r}: expected one of {', '.join(DEVICES)}")
    if quantize not in QUANTIZATIONS:
        raise EngineError(f"quantize={quantize!r}: expected one of {', '.join(QUANTIZATIONS)}")
    if dtype not in DTYPE_BYTES:
        raise EngineError(f"dtype={dtype!r}: expected one of {', '.join(DTYPE_BYTES)}")
    if tp < 1:
        raise EngineError(f"tp={tp}: expected an integer of at least 1")


def _weights_tier_of(text: str | None, kv_tier: str | None, device: str) -> KvTierSpec | None:
    """The tier that `--weights-tier` means, if an engine could have it and that of `--kv-tier`."""
    from interlace.engine.config import EngineConfig

    kv_tiers = [] if kv_tier is None else [kv_tier]
    return EngineConfig("model", kv_tiers=kv_tiers, weights_tier=text, device=device).weights_tier_spec


def _split_row(split: str | None, tokens: int, tp: int, device: str) -> int | None:
    """The row that `--split` means."""
    from interlace.cli.plan_costs import ROUND_GPU_TILE, ROUND_TILE
    from tokenweave.split import alignment_of, gpu_alignment_of, middle

    if split in (None, "none"):
        return None
    if split == "middle":
        if device == "cuda":
            return middle(tokens, gpu_alignment_of(ROUND_GPU_TILE, tp))
        return middle(tokens, alignment_of(ROUND_TILE, tp))
    if split is None or not split.isdecimal():
        raise EngineError(f"split={split!r}: expected a number of tokens, middle or none")
    return int(split)


def _source_of(model: str) -> WeightSource:
    from interlace.models.sources import load_model

    return load_model(model, quiet=not console.is_progress_shown()).weights


def _print_header(model: str, config: ModelConfig, workloads: list[Workload]) -> None:
    experts = (
        f", {config.num_experts} experts ({config.experts_per_token} per token)" if config.num_experts else ""
    )
    window = f", window {config.sliding_window}" if config.sliding_window else ""
    tied = "tied" if config.tie_word_embeddings else "not tied"
    moves = workloads[0].moves
    position = f"from position {moves.num_fetched_tokens}" + (
        ", behind what it fetches" if moves.num_fetched else ""
    )
    print(
        f"{model}: {config.family}, {config.num_layers} layers, hidden {config.hidden_size}, "
        f"MLP {config.intermediate_size}{experts}\n"
        f"{config.num_heads} heads of {config.head_dim} over {config.num_kv_heads} KV heads{window}, "
        f"vocabulary {config.vocab_size} ({tied}), context {config.max_position}\n"
        f"one sequence of {workloads[0].num_tokens} tokens {position}, {workloads[0].dtype}"
        f"{workloads[0].formats_text}, "
        f"{len(workloads)} rank{'s' if len(workloads) > 1 else ''}"
    )


def _ranks_table(workloads: list[Workload]) -> Table:
    """Who owns what."""
    from interlace.cli.plan_work import span

    table = _table("rank", "heads", "KV heads", "MLP columns", "vocabulary rows", "weights", "KV per token")
    for workload in workloads:
        shard = workload.shard
        owned = (shard.heads, shard.kv_heads, shard.intermediate, shard.vocab)
        table.add_row(
            str(shard.rank),
            *(f"{len(units)} ({span(units)})" for units in owned),
            console.megabytes(workload.weights_bytes),
            f"{workload.kv_bytes_per_token:,} B",
        )
    return table


def _steps_table(plan: Plan, workload: Workload, every_step: bool) -> Table:
    """The steps in order; those of the layers in the middle as one line unless `every_step`."""
    from tokenweave.plan import Lane

    moved = ["KB moved"] if plan.on(Lane.MEMORY) else []
    does = f"what rank {workload.shard.rank} does"
    table = _table("step", "lane", "operation", does, "MFLOP", "KB given", *moved, "after")
    folded = {} if every_step else {places.start: places for places in _middle(plan)}
    left = 0  # of the steps that are folded
    for position, step in enumerate(plan.steps):
        if position in folded:
            left = len(folded[position])
            layers = len({plan.steps[other].layer for other in folded[position]})
            table.add_row("...", "", "", f"{layers} more layers, {left} steps (--all shows them)")
        if left:
            left -= 1
            continue
        work = workload.of(step)
        table.add_row(
            str(position),
            step.lane.value,
            step.name,
            work.text,
            _cell(work.flops / 1e6),
            _cell(work.bytes_given / 1e3),
            *(_cell(work.bytes_moved / 1e3) for _ in moved),
            ", ".join(str(other) for other in step.waits_for),
        )
    return table


def _cell(figure: float) -> str:
    """A tenth is the last place; two figures of less than that, and nothing for nothing."""
    return "" if not figure else f"{figure:,.1f}" if figure >= 0.1 else f"{figure:.2g}"


def _middle(plan: Plan) -> list[range]:
    """Positions of the steps of all layers but the first and the last, as far as they follow each other; none where
    there are no other layers."""
    layers = sorted({step.layer for step in plan.steps if step.layer is not None})
    if len(layers) <= NUMBER_OF_ENDS + 1:
        return []
    found: list[range] = []
    for at, step in enumerate(plan.steps):
        if step.layer is None or step.layer in (layers[0], layers[-1]):
            continue
        if found and found[-1].stop == at:
            found[-1] = range(found[-1].start, at + 1)
        else:
            found.append(range(at, at + 1))
    return found


def _print_totals(plan: Plan, workload: Workload) -> None:
    from interlace.cli.plan_object import totals_of

    totals = totals_of(plan, workload)
    print(
        f"\nrank {workload.shard.rank} in all: {len(plan.steps)} steps, {_flops(totals['flops'])}, "
        f"{totals['reductions']} reductions of {console.megabytes(totals['reduced_bytes'])} together"
        + (f", {console.megabytes(totals['moved_bytes'])} moved" if totals["moved_bytes"] else "")
    )


def _flops(count: float) -> str:
    """Operations in the largest unit that has one before the point."""
    for unit, size in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f} FLOP"


def _table(*headings: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    numbers = {"step", "MFLOP", "KB given", "KB moved", "weights", "KV per token"}
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numbers else "left")
    return table
