"""`interlace bench`: what it is told on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlace.cli import console

if TYPE_CHECKING:
    from interlace.cli.bench.drive import ServeRun

GEMM_TOKENS = (512, 2048)
Model = Annotated[str, typer.Option("--model", "-m", help="An alias, a directory or a .gguf file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Measure Interlace, with peers interleaved in the same run; correctness before speed."""


@app.command()
def serve(
    model: Model = "smollm2",
    systems: Annotated[str, typer.Option(help="Names, with commas; absent: all that can run.")] = "",
    peer_python: Annotated[
        str | None, typer.Option(help="Python of an environment with transformers, vllm, llama-cpp-python.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds; a warm-up round comes before them.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Of each system; absent: the cores.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write DIR/<machine>/serve.json.", metavar="DIR")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small shapes: that it works, not how fast.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prefill, decode, a job of many prompts, cold start; limits of the machine; where the time goes."""
    from interlace.cli.bench import record, report
    from interlace.cli.bench.drive import ServeOptions
    from interlace.cli.bench.drive import serve as run_serve

    options = ServeOptions(
        model=model,
        systems=tuple(name.strip() for name in systems.split(",") if name.strip()),
        peer_python=peer_python,
        rounds=rounds,
        threads=threads or _cores(),
        is_quick=quick,
    )
    run: ServeRun = run_serve(options, lambda text: typer.echo(text, err=True))
    result = record.to_json(run)
    if out is not None:
        typer.echo(f"written: {record.write(result, out)}", err=True)
    if as_json:
        console.show_json(result)
    else:
        console.show(*report.tables(run))


@app.command()
def limits(
    model: Model = "smollm2",
    rounds: Annotated[int, typer.Option(help="Samples of each limit.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Absent: the cores.")] = None,
    as_json: Json = False,
) -> None:
    """What the machine would allow: GEMM alone at the model's shapes, and bytes from memory."""
    from emucxl.bench import machine
    from interlace.cli.bench import report
    from interlace.cli.bench.limits import measure_limits
    from interlace.models.sources import load_model

    config = load_model(model).config
    found = measure_limits(config, threads or _cores(), rounds, GEMM_TOKENS)
    if as_json:
        console.show_json({"machine": machine.describe(), **found.to_json()})
    else:
        console.show(report.gemm(found), report.memory(found))


@app.command()
def split(
    model: Model = "smollm2",
    tp: Annotated[int, typer.Option(help="Ranks.")] = 2,
    link: Annotated[
        str | None, typer.Option(help="A link to model between them; none: memory.", metavar="GB/s,us|none")
    ] = "0.25GB/s,5us",
    tokens: Annotated[str, typer.Option(help="Token counts, with commas; absent: five.")] = "",
    dtype: Annotated[str, typer.Option(metavar="auto|float32|bfloat16")] = "auto",
    rounds: Annotated[int, typer.Option(help="Timed rounds of every split.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Write DIR/<machine>/split.json.", metavar="DIR")] = None,
    as_json: Json = False,
) -> None:
    """The split that the engine chooses against a sweep over all others, and the simulator against the clock."""
    from emucxl.bench import harness, machine
    from interlace.cli.bench import split as bench
    from interlace.engine.config import EngineConfig

    counts = tuple(int(count) for count in tokens.split(",")) if tokens else bench.TOKENS
    config = EngineConfig(model, tp=tp, dtype=dtype, link=None if link in (None, "none") else link)
    with console.progress("measuring") as progress:
        found, is_table_measured = bench.measure(config, counts, rounds, progress)
    report = bench.report(config, found, is_table_measured)
    if out is not None:
        path = harness.write_report(report, False, out / machine.slug() / "split.json")
        typer.echo(f"written: {path}", err=True)
    if as_json:
        console.show_json(harness.record(report, quick=False))
    else:
        console.show(harness.table(report))


def _cores() -> int:
    return len(os.sched_getaffinity(0))
