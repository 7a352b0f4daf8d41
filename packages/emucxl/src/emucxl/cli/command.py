"""The frame of this project's commands, without their subcommands: how they are called and how they end.

Exit status: 0 done, 1 an error that was reported in one line, 2 wrong usage, 130 interrupted with Ctrl-C, 141 where the
reader of standard output ended first.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from emucxl.cli import console, streams

INTERRUPTED = 130  # 128 + SIGINT, as shells count
READER_GONE = 141  # 128 + SIGPIPE
DIRECTORY_GONE = "the working directory is gone: cd to one that exists"


class Group(TyperGroup):
    """A group of commands that names them all where it is asked for another."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"got the command {args[0]!r}; expected one of {', '.join(self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


def new_app(name: str, *reported: type[Exception]) -> typer.Typer:
    """A command without subcommands. An error of the kinds `reported` becomes one line on standard error."""
    told: tuple[type[Exception], ...] = (*reported, streams.InputError)

    class Commands(Group):
        def invoke(self, ctx: Any) -> Any:
            try:
                return super().invoke(ctx)
            except told as error:
                if ctx.params.get("debug"):
                    raise
                console.show_error(error)
                raise typer.Exit(1) from None
            except OSError as error:
                if ctx.params.get("debug"):
                    raise
                console.show_error(_refused(error))
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


def version_printer(name: str, version: str) -> Callable[[bool], None]:
    """The callback of `--version`."""

    def show(wanted: bool) -> None:
        if wanted:
            print(f"{name} {version}")
            raise typer.Exit

    return show


def run(app: typer.Typer, name: str, needs_directory: bool = False) -> None:
    """Entry point of a script. `needs_directory`: it loads libraries that cannot do without a working directory."""
    streams.prepare()
    if needs_directory and _is_directory_gone():
        console.show_error(OSError(DIRECTORY_GONE))
        sys.exit(1)
    try:
        try:
            app(prog_name=name)
        finally:
            sys.stdout.flush()  # what is left fails here, where it can be told
    except KeyboardInterrupt:  # between the pieces: before a subcommand began or after it ended
        sys.exit(INTERRUPTED)
    except streams.ReaderGone:
        streams.discard_output()
        sys.exit(READER_GONE)
    except streams.StreamError as error:
        streams.discard_output()
        console.show_error(error)
        sys.exit(1)


def _refused(error: OSError) -> OSError:
    """Says in words which call the system refused; where the working directory is gone, what to do."""
    code = errno.errorcode.get(error.errno or 0, "no code")
    where = f": {error.filename}" if error.filename is not None else ""
    text = f"{error.strerror or error} ({code}){where}"
    return OSError(f"{text}; {DIRECTORY_GONE}" if _is_directory_gone() else text)


def _is_directory_gone() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False
