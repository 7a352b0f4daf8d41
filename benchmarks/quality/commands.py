"""`make bench perplexity`."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.harness.command_line import Json, Model, Out, PeerPython, Quick, Threads, finish
from emucxl import resources
from interlace.cli import console

WINDOW, QUICK_WINDOW = 512, 48


def add_to(app: typer.Typer) -> None:
    """Adds this folder's subcommands."""
    app.command()(perplexity)


def perplexity(
    model: Model = "smollm2",
    quantize: Annotated[
        str, typer.Option(help="Compared with dense weights, with commas: stored, int8, int4.")
    ] = "stored",
    peer_python: PeerPython = None,
    windows: Annotated[int | None, typer.Option(help="Of 512 tokens; absent: the whole text.")] = None,
    threads: Threads = None,
    out: Out = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Perplexity of a fixed text with dense weights and with weights in blocks, beside llama.cpp's."""
    from benchmarks.quality.perplexity import measure, peer_score, report

    count = threads or resources.num_threads()
    length, most = (QUICK_WINDOW, 1) if quick else (WINDOW, windows)
    names = [name.strip() for name in quantize.split(",") if name.strip()]
    with console.progress("scoring") as progress:
        scores, scored = measure(model, names, count, length, most, progress)
    if peer_python is not None:
        scores.append(peer_score(model, peer_python, count, scored))
    finish([report(model, scores, scored)], quick, out, as_json)
