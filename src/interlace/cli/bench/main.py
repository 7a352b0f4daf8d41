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


def _cores() -> int:
    return len(os.sched_getaffinity(0))
