"""The `emucxl` command: its subcommands. `emucxl.cli.command` says how every one of them ends."""

from __future__ import annotations

from typing import Annotated

import typer

from emucxl import __version__
from emucxl.cli import bench, calibrate, doctor, pool, presets, top
from emucxl.cli.command import new_app, run, version_printer
from emucxl.errors import EmucxlError

app = new_app("emucxl", EmucxlError)


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=version_printer("emucxl", __version__),
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Memory in tiers, real or modelled: local, NUMA, CXL, and pools shared between hosts."""


app.command()(doctor.doctor)
app.command()(presets.presets)
app.command()(calibrate.calibrate)
app.command()(top.top)
app.add_typer(pool.app, name="pool")
app.command()(bench.bench)


def main() -> None:
    """Entry point of the `emucxl` script."""
    run(app, "emucxl")
