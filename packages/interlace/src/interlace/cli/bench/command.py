"""`interlace bench`: prefill, decode and a job of many prompts on this machine."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emucxl.cli.command import Group
from interlace.cli import console
from interlace.cli.bench.kv import kv
from interlace.cli.bench.trace_command import trace
from interlace.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emucxl.bench.harness import Progress, Report, Samples
    from interlace.cli.bench.workload import ServeWorkload
    from interlace.engine.config import EngineConfig
    from interlace.engine.engine import Engine

CHECKED_PROMPTS, CHECKED_TOKENS = 3, 8


app = typer.Typer(cls=Group, invoke_without_command=True)


@app.callback()
def bench(
    context: typer.Context,
    model: Annotated[
        str, typer.Option("--model", "-m", help="An alias, a directory, a .gguf file or a hub id.")
    ] = "smollm2",
    tp: Annotated[int, typer.Option(help="Ranks to split the model over.")] = 1,
    device: Annotated[str, typer.Option(help="As in `generate`.", metavar="auto|cpu|cuda")] = "auto",
    dtype: Annotated[str, typer.Option(metavar="auto|float32|bfloat16|float16")] = "auto",
    quantize: Annotated[
        str, typer.Option(help="Weights, as in `generate`.", metavar="auto|none|stored|int8|int4|fp8")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="Per rank; absent: the cores, shared out.")] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds; a warm-up round comes before them.")] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small shapes: checks that it runs; its times mean nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write DIR/<machine>/engine.json.", metavar="DIR")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Measure prefill, decode and batches on this machine. Answers are checked before anything is timed."""
    from emucxl.bench import harness
    from interlace.cli.bench.workload import FULL, QUICK, longest_sequence, whole_blocks
    from interlace.engine.config import EngineConfig

    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if rounds < 1:
        raise BenchError(f"got rounds={rounds}; expected at least 1")
    workloads = QUICK if quick else FULL
    room = whole_blocks(longest_sequence(workloads))
    config = EngineConfig(
        model,
        tp=tp,
        device=device,
        dtype=dtype,
        threads=threads,
        max_model_len=room,
        quantize=quantize,
        prefix_cache=False,  # rounds have the same prompts
    )
    with console.progress("measuring") as progress:
        result = report(*measure(config, workloads, rounds, progress), rounds)
    if out is not None:
        typer.echo(f"written: {harness.write_report(result, quick, out, folder='')}", err=True)
    if as_json:
        console.show_json(harness.record(result, quick))
    else:
        console.show(harness.table(result))


def _refuse_options(context: typer.Context) -> None:
    """Raises BenchError for options before the name of a subcommand: they are not its own."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    typed = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if typed:
        raise BenchError(
            f"got --{typed[0].replace('_', '-')} before {context.invoked_subcommand}; expected its options behind it"
        )


app.command()(trace)
app.command()(kv)


def measure(
    config: EngineConfig, workloads: tuple[ServeWorkload, ...], rounds: int, progress: Progress | None = None
) -> tuple[dict[str, Any], dict[ServeWorkload, Samples]]:
    """The ranks' own description, and the samples of each workload in tokens/s.

    Raises: BenchError when the engine gives wrong tokens, or not as many as were asked for.
    """
    from emucxl.bench.harness import interleaved
    from interlace.cli.bench.generation import generate
    from interlace.engine.engine import Engine
    from interlace.engine.ranks.launch import start

    ranks = start(config)
    try:
        engine, vocab_size, seeds = Engine(ranks, config), ranks.model_config.vocab_size, count()
        check(engine, vocab_size, is_batch_invariant=ranks.describe()["kernels"] == "native")

        def sample(workload: ServeWorkload) -> float:
            prompts = workload.prompts(vocab_size, next(seeds))
            return workload.rate(generate(engine, prompts, workload.output_tokens))

        for workload in workloads:  # the warm-up
            sample(workload)
        by_name = interleaved({each.name: partial(sample, each) for each in workloads}, rounds, progress)
        return ranks.describe(), {each: by_name[each.name] for each in workloads}
    finally:
        ranks.close()


def check(engine: Engine, vocab_size: int, is_batch_invariant: bool) -> None:
    """Compares the greedy tokens of prompts in one batch with those of the same prompts one by one.

    Without `is_batch_invariant`, as for the kernels in torch, with those of the same batch once more.
    """
    from interlace.cli.bench.generation import generate
    from interlace.cli.bench.workload import ServeWorkload

    prompts = ServeWorkload("job", CHECKED_PROMPTS, 24, CHECKED_TOKENS).prompts(vocab_size, seed=0)
    together = generate(engine, prompts, CHECKED_TOKENS).tokens
    groups = [[prompt] for prompt in prompts] if is_batch_invariant else [prompts]
    again = [row for group in groups for row in generate(engine, group, CHECKED_TOKENS).tokens]
    if together != again:
        raise BenchError(f"got the tokens {again} for prompts that gave {together} before; nothing was timed")


def report(ranks: dict[str, Any], rates: dict[ServeWorkload, Samples], rounds: int) -> Report:
    """One row for each workload."""
    from emucxl.bench.harness import Report
    from interlace.cli.report import weights_text

    count, threads = len(ranks["ranks"]), ranks["threads_per_rank"]
    split = f"{count} rank{'s' * (count > 1)} "
    split += (
        f"of {threads} thread{'s' * (threads > 1)}" if ranks["device"] == "cpu" else f"on {ranks['device']}"
    )
    return Report(
        name="engine",
        title=f"{split}, {weights_text(ranks['weights'])}{ranks['dtype']}, {ranks['kernels']} kernels (measured)",
        columns=("workload", "rate", "unit"),
        rows=tuple((each.name, samples.extremes_text(), each.unit) for each, samples in rates.items()),
        notes=(f"Medians of {rounds} interleaved rounds (lowest-highest), after a warm-up round.",),
        results={"engine": ranks, "workloads": list(_records(rates))},
    )


def _records(rates: dict[ServeWorkload, Samples]) -> Iterator[dict[str, Any]]:
    for workload, samples in rates.items():
        yield {"name": workload.name, **asdict(workload), "rate": samples.to_json(workload.unit)}
