"""The command line of the benchmarks: a subcommand for each of them."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.gpu import commands as gpu
from benchmarks.kernels import commands as kernels
from benchmarks.kv import commands as kv
from benchmarks.memory import commands as memory
from benchmarks.quality import commands as quality
from benchmarks.serve import commands as serve
from benchmarks.weave import commands as weave
from emucxl.cli.command import new_app, run
from emucxl.errors import EmucxlError
from interlace.errors import InterlaceError
from tokenweave.errors import TokenweaveError

NAME = "make bench"

app = new_app(NAME, InterlaceError, TokenweaveError, EmucxlError)


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measures this checkout on this machine; answers are checked before anything is timed.

    make bench NAME ARGS="..." runs one. `emucxl bench` has three more: accuracy, kv and queue.
    """


@app.command("list")
def show_list() -> None:
    """List the benchmarks."""
    for command in app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "")
        if command.callback is not show_list:
            print(f"{name:<12} {(command.callback.__doc__ or '').splitlines()[0]}")


for folder in (serve, kv, weave, kernels, memory, quality, gpu):
    folder.add_to(app)


def main() -> None:
    """Entry point of `python -m benchmarks`."""
    run(app, NAME, needs_directory=True)  # MKL, in torch, ends the process without one
