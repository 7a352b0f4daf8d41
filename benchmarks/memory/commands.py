"""`make bench alloc`, `calls`, `copy` and `scaling`."""

from __future__ import annotations

from types import ModuleType

import typer

from benchmarks.harness.command_line import Json, Out, Quick, finish
from benchmarks.memory import alloc, calls, copy, scaling
from interlace.cli import console


def add_to(app: typer.Typer) -> None:
    """Adds this folder's subcommands."""
    for module in (alloc, calls, copy, scaling):
        _add(app, module)


def _add(app: typer.Typer, module: ModuleType) -> None:
    def measure(out: Out = None, quick: Quick = False, as_json: Json = False) -> None:
        with console.progress(module.NAME) as progress:
            report = module.run(quick=quick, progress=progress)
        finish([report], quick, out, as_json, folder="memory")

    measure.__doc__ = module.SUMMARY
    app.command(module.NAME)(measure)
