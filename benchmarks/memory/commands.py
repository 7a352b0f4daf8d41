"""`make bench alloc`, `calls`, `copy` and `scaling`."""

from __future__ import annotations

from importlib import import_module

import typer

from benchmarks.harness.command_line import Json, Out, Quick, measure

# A module of this folder, imported when it runs: without the native core none can be, and other benchmarks still run.
SUMMARIES = {
    "alloc": "Allocation and free against malloc, mimalloc, UMF, and an mmap per block.",
    "calls": "Nanoseconds per call from Python: 64-byte reads and writes, views, alloc and free.",
    "copy": "Bulk and small accesses to unmodelled tiers against memcpy of the same bytes.",
    "scaling": "Allocation and free in 1, 2 and 4 threads of one tier, and handed from thread to thread.",
}


def add_to(app: typer.Typer) -> None:
    """Adds this folder's subcommands."""
    for name, summary in SUMMARIES.items():
        _add(app, name, summary)


def _add(app: typer.Typer, name: str, summary: str) -> None:
    def command(out: Out = None, quick: Quick = False, as_json: Json = False) -> None:
        module = import_module(f"benchmarks.memory.{name}")
        measure(
            lambda progress: module.run(quick=quick, progress=progress), quick, out, as_json, "memory", name
        )

    command.__doc__ = summary
    app.command(name)(command)
