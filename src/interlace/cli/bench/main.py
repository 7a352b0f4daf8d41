"""`interlace bench`: what it is told on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlace.cli import console

if TYPE_CHECKING:
    from interlace.cli.bench.drive import ServeRun

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Quick = Annotated[
    bool, typer.Option("--quick", help="Small shapes: shows that everything works, not how fast.")
]


@app.callback()
def root() -> None:
    """Measure Interlace, with peers interleaved in the same run; correctness before speed."""


@app.command()
def serve(
    model: Annotated[
        str, typer.Option("--model", "-m", help="An alias, a directory or a .gguf file.")
    ] = "smollm2",
    systems: Annotated[str, typer.Option(help="Names, with commas; absent: all that can run.")] = "",
    peer_python: Annotated[
        str | None, typer.Option(help="Python of an environment with transformers, vllm, llama-cpp-python.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds; a warm-up round comes before them.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Of each system; absent: the cores.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write DIR/<machine>/serve.json.", metavar="DIR")] = None,
    quick: Quick = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
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
        threads=threads or len(os.sched_getaffinity(0)),
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
