"""`make bench kv`."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.harness.command_line import (
    Json,
    Model,
    Out,
    PeerPython,
    Quick,
    Rounds,
    Threads,
    measure,
)
from emucxl import resources


def add_to(app: typer.Typer) -> None:
    """Adds this folder's subcommand."""
    app.command()(kv)


def kv(
    model: Model = "smollm2",
    peer_python: PeerPython = None,
    rounds: Rounds = 5,
    threads: Threads = None,
    rows: Annotated[str, typer.Option(help="hits, hidden, no-reuse, sweep, with commas; absent: all.")] = "",
    out: Out = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Tiers below the KV cache: hits there, what of a fetch is hidden, no reuse, and fetching beside computing."""
    from benchmarks.kv.run import chosen, run
    from benchmarks.kv.setting import Setting

    count = threads or resources.num_threads()
    setting = Setting.of(model, count, rounds, quick)
    names = chosen(rows)

    def tell(text: str) -> None:
        typer.echo(text, err=True)

    measure(lambda progress: run(setting, names, peer_python, tell, progress), quick, out, as_json)
