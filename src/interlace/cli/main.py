"""The `interlace` command: its subcommands, and how every one of them ends.

Exit status: 0 done, 1 an error that was reported in one line, 2 wrong usage, 130 interrupted with Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from emucxl.errors import EmucxlError
from interlace.cli import chat, console, doctor, generate, plan, pull, trace, tune
from interlace.cli.bench import main as bench
from interlace.errors import InterlaceError
from tokenweave.errors import TokenweaveError

REPORTED = (InterlaceError, TokenweaveError, EmucxlError)
INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Commands(TyperGroup):
    """Runs a subcommand; an error of the three packages becomes one line on standard error."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except REPORTED as error:
            if ctx.params.get("debug"):
                raise
            console.show_error(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="interlace",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"interlace {version('interlace')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Serves large language models over several ranks and several kinds of memory."""


app.command()(generate.generate)
app.command()(chat.chat)
app.command()(pull.pull)
app.command()(doctor.doctor)
app.command()(tune.tune)
app.add_typer(plan.app, name="plan")
app.add_typer(trace.app, name="trace")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point of the `interlace` script."""
    try:
        app(prog_name="interlace")
    except KeyboardInterrupt:  # between the pieces: before a subcommand began or after it ended
        sys.exit(INTERRUPTED)
