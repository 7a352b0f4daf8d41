"""`make gpu` and `make bench gpu`."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from benchmarks.gpu.findings import NoDevice
from benchmarks.gpu.stages import STAGES
from benchmarks.harness.command_line import Json, Out
from interlace.cli import console


def add_to(app: typer.Typer) -> None:
    """Adds this folder's subcommand."""
    app.command()(gpu)


def gpu(
    stages: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help=f"Some of: {', '.join(stage.name for stage in STAGES)}."),
    ] = None,
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="In a minute: few shapes and rounds.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try the script itself, on fakes; nothing is measured.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The tests, the fused operation, overlap and streams on one GPU, in minutes: one table, one record."""
    from benchmarks.gpu.process import StageOutcome
    from benchmarks.gpu.script import run_stages
    from benchmarks.gpu.stages import StageOptions, stages_named
    from benchmarks.gpu.table import is_good, record, report
    from benchmarks.harness.command_line import write
    from benchmarks.harness.processes import ROOT
    from emucxl.bench import harness

    chosen = stages_named(None if stages is None else [name.strip() for name in stages.split(",")])
    root = out or (ROOT / "build" / "gpu" if dry_run else ROOT / "benchmarks" / "results")
    folder = (
        root / "gpu-stages"
    )  # what is known of the stages, should this process not live to write the record
    folder.mkdir(parents=True, exist_ok=True)
    kind = ["dry-run"] if dry_run else ["quick"] if quick else []
    name = "-".join(["gpu", *kind, *([] if stages is None else [stage.name for stage in chosen])])
    options = StageOptions(is_quick=quick, is_dry_run=dry_run, artefacts=str(folder), name=name)

    def announce(outcome: StageOutcome) -> None:
        reason = f": {outcome.reason}" if outcome.reason else ""
        typer.echo(f"{outcome.stage}: {outcome.state} in {outcome.seconds:.0f} s{reason}", err=True)

    try:
        outcomes = run_stages(chosen, options, folder, announce)
    except NoDevice:
        shutil.rmtree(folder)
        raise
    made = report(outcomes, options)
    result = record(made, quick or dry_run)
    if out is not None or not dry_run:
        path = harness.results_path(name, False, root, "")
        write(result, path)
        for artefact in folder.glob(f"{name}-*"):
            shutil.move(artefact, path.parent / artefact.name)
    shutil.rmtree(folder)
    if as_json:
        console.show_json(result)
    else:
        console.show(harness.table(made))
    if not is_good(outcomes):
        raise typer.Exit(1)
