"""The `interlace` command and its subcommands. `emucxl.cli.command` runs them and turns errors into exit statuses."""

from __future__ import annotations

from typing import Annotated

import typer

from emucxl.cli.command import new_app, run, version_printer
from emucxl.errors import EmucxlError
from interlace import __version__
from interlace.cli import chat, doctor, generate, kv_sim, plan, pull, trace, tune
from interlace.cli.bench import command as bench
from interlace.errors import InterlaceError
from tokenweave.errors import TokenweaveError

app = new_app("interlace", InterlaceError, TokenweaveError, EmucxlError)


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=version_printer("interlace", __version__),
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Serves large language models over several ranks and several kinds of memory."""


app.command()(generate.generate)
app.command()(chat.chat)
app.command()(pull.pull)
app.command()(doctor.doctor)
app.command()(tune.tune)
app.command("kv-sim")(kv_sim.kv_sim)
app.add_typer(bench.app, name="bench")
app.add_typer(plan.app, name="plan")
app.add_typer(trace.app, name="trace")


def main() -> None:
    """Entry point of the `interlace` script."""
    run(app, "interlace", needs_directory=True)  # MKL, in torch, ends the process without one
