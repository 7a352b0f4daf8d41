"""What a command of this project is made of, whatever its subcommands: how it is called and how it ends.

Exit status: 0 done, 1 an error that was reported in one line, 2 wrong usage, 130 interrupted with Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from emucxl.cli import console

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def new_app(name: str, *reported: type[Exception]) -> typer.Typer:
    """A command without subcommands. An error of the kinds `reported` becomes one line on standard error."""

    class Commands(TyperGroup):
        def invoke(self, ctx: Any) -> Any:
            try:
                return super().invoke(ctx)
            except reported as error:
                if ctx.params.get("debug"):
                    raise
                console.show_error(error)
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None

    return typer.Typer(
        name=name,
        cls=Commands,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def version_printer(name: str) -> Callable[[bool], None]:
    """The callback of `--version`."""

    def show(wanted: bool) -> None:
        if wanted:
            from importlib.metadata import version

            print(f"{name} {version('interlace')}")
            raise typer.Exit

    return show


def run(app: typer.Typer, name: str) -> None:
    """Entry point of a script."""
    try:
        app(prog_name=name)
    except KeyboardInterrupt:  # between the pieces: before a subcommand began or after it ended
        sys.exit(INTERRUPTED)
