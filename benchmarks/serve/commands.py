"""`make bench serve` and `make bench limits`."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.harness.command_line import Json, Model, Out, PeerPython, Quick, Rounds, Threads, write
from emucxl import resources
from interlace.cli import console

GEMM_TOKENS = (512, 2048)


def add_to(app: typer.Typer) -> None:
    """Adds this folder's subcommands."""
    app.command()(serve)
    app.command()(limits)


def serve(
    model: Model = "smollm2",
    systems: Annotated[str, typer.Option(help="Names, with commas; absent: all that can run.")] = "",
    peer_python: PeerPython = None,
    rounds: Rounds = 5,
    threads: Threads = None,
    out: Out = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Prefill, decode, a job of many prompts and a cold start, beside peers; limits of the machine."""
    from benchmarks.serve import record, report
    from benchmarks.serve.drive import ServeOptions
    from benchmarks.serve.drive import serve as run_serve
    from emucxl.bench import harness

    options = ServeOptions(
        model=model,
        systems=tuple(name.strip() for name in systems.split(",") if name.strip()),
        peer_python=peer_python,
        rounds=rounds,
        threads=threads or resources.num_threads(),
        is_quick=quick,
    )
    run = run_serve(options, lambda text: typer.echo(text, err=True))
    result = record.to_json(run)
    if out is not None:
        write(result, harness.results_path("serve", quick, out, folder=""))
    if as_json:
        console.show_json(result)
    else:
        console.show(*report.tables(run))


def limits(
    model: Model = "smollm2",
    rounds: Rounds = 5,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """The rates that the machine would allow: GEMM alone at the model's shapes, and bytes from memory."""
    from benchmarks.serve import report
    from benchmarks.serve.limits import measure_limits
    from emucxl.bench import machine
    from interlace.models.sources import load_model

    config = load_model(model).config
    found = measure_limits(config, threads or resources.num_threads(), rounds, GEMM_TOKENS)
    if as_json:
        console.show_json({"machine": machine.describe(), **found.to_json()})
    else:
        console.show(report.gemm(found), report.memory(found))
