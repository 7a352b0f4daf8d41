"""`make bench serve`, `prefix`, `step` and `limits`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness.command_line import (
    Device,
    Json,
    Model,
    Out,
    PeerPython,
    Quick,
    Rounds,
    Threads,
    checked_device,
    measure,
    write,
)
from emucxl import resources
from interlace.cli import console

GEMM_TOKENS, QUICK_GEMM_TOKENS = (512, 2048), (64,)


def add_to(app: typer.Typer) -> None:
    """Adds this folder's subcommands."""
    app.command()(serve)
    app.command()(prefix)
    app.command()(step)
    app.command()(limits)
    app.command("random-model")(random_model)


def serve(
    model: Model = "smollm2",
    systems: Annotated[str, typer.Option(help="Names, with commas; absent: all that can run.")] = "",
    workloads: Annotated[
        str, typer.Option(help='As the table heads them ("prefill 512"), with commas; absent: all.')
    ] = "",
    peer_python: Annotated[
        list[str] | None,
        typer.Option(
            help="Python of an environment that has the peers, or NAME=PYTHON for one of them; may be repeated. "
            "Absent: no peers."
        ),
    ] = None,
    rounds: Rounds = 5,
    threads: Threads = None,
    device: Device = "cpu",
    out: Out = None,
    quick: Quick = False,
    machine_report: Annotated[
        bool,
        typer.Option(
            "--machine-report", help="One table alone: speed, ratio to the best peer, % of the floor."
        ),
    ] = False,
    recorded: Annotated[
        Path | None,
        typer.Option("--from", help="The machine report of a run that was recorded, and no new run."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prefill, decode, a job of many prompts and a cold start, beside peers; limits of the machine."""
    from benchmarks.serve import record, report
    from benchmarks.serve import workloads as shapes
    from benchmarks.serve.drive import ServeOptions
    from benchmarks.serve.drive import serve as run_serve
    from benchmarks.serve.interpreters import Interpreters
    from benchmarks.serve.machine_report import machine_report as report_of_machine
    from benchmarks.serve.machine_report import read_record
    from benchmarks.serve.systems import KINDS, SYSTEMS
    from emucxl.bench import harness

    if recorded is not None:
        console.show(report_of_machine(read_record(recorded)))
        return
    options = ServeOptions(
        model=model,
        systems=_names(systems),
        pythons=Interpreters.parse(peer_python or (), [*KINDS, *(system.name for system in SYSTEMS)]),
        rounds=rounds,
        threads=threads or resources.num_threads(),
        device=checked_device(device),
        is_quick=quick,
        workloads=shapes.choose(_names(workloads), quick),
    )
    run = run_serve(options, lambda text: typer.echo(text, err=True))
    result = record.to_json(run)
    if out is not None:
        write(result, harness.results_path("serve", quick, out, folder=""))
    if as_json:
        console.show_json(result)
    elif machine_report:
        console.show(report_of_machine(result))
    else:
        console.show(*report.tables(run))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def prefix(
    model: Model = "smollm2",
    peer_python: PeerPython = None,
    rounds: Rounds = 5,
    threads: Threads = None,
    out: Out = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Time to the first token of a prompt that is computed and of one whose beginning is found, beside vLLM's."""
    from benchmarks.serve.interpreters import Interpreters
    from benchmarks.serve.prefix import run

    pythons, count = Interpreters(peer_python), threads or resources.num_threads()
    measure(lambda progress: run(model, pythons, count, rounds, quick, progress), quick, out, as_json)


def step(
    model: Model = "smollm2",
    threads: Threads = None,
    out: Out = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Python and hand-over in a decode step, by phase: all that is not spent in native functions."""
    from benchmarks.serve.step import run

    count = threads or resources.num_threads()
    measure(lambda progress: run(model, count, quick, progress), quick, out, as_json)


def random_model(
    shape: Annotated[str, typer.Argument(help="llama-1b, or llama-tiny.")],
    directory: Annotated[Path, typer.Argument(help="A new directory.")],
    quantization: Annotated[
        str | None, typer.Option("--gguf", help="Write a GGUF file in this format, too: Q8_0, Q4_0, BF16.")
    ] = None,
) -> None:
    """Write a model of random weights, for `make bench serve ARGS="--model DIR"`."""
    from benchmarks.serve.random_model import SHAPES, write_model
    from interlace.errors import BenchError

    if shape not in SHAPES:
        raise BenchError(f"got the shape {shape!r}; expected one of {list(SHAPES)}")
    with console.progress(shape) as progress:
        written = write_model(SHAPES[shape], directory, quantization, progress)
    for path in written:
        typer.echo(path)


def limits(
    model: Model = "smollm2",
    rounds: Rounds = 5,
    threads: Threads = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """The rates that the machine would allow: GEMM alone at the model's shapes, and bytes from memory."""
    from benchmarks.serve import report
    from benchmarks.serve.limits import measure_limits
    from emucxl.bench import machine
    from interlace.models.sources import load_model

    config = load_model(model).config
    tokens = QUICK_GEMM_TOKENS if quick else GEMM_TOKENS
    with console.progress("measuring") as progress:
        found = measure_limits(config, threads or resources.num_threads(), rounds, tokens, progress)
    if as_json:
        console.show_json({"machine": machine.describe(), **found.to_json()})
    else:
        console.show(report.gemm(found), report.memory(found))
