"""The options that every benchmark has, and the end of each: a table or JSON, and a file where one was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from emucxl.bench import harness
from emucxl.bench.harness import Progress, Report
from interlace.cli import console
from interlace.errors import BenchError

Model = Annotated[str, typer.Option("--model", "-m", help="An alias, a directory or a .gguf file.")]
Dtype = Annotated[str, typer.Option(metavar="auto|float32|bfloat16")]
Rounds = Annotated[int, typer.Option(help="Timed rounds, in which the systems take turns.")]
Threads = Annotated[int | None, typer.Option(help="Of each system; absent: the cores.")]
Device = Annotated[
    str, typer.Option(help="Where it is measured. On cuda: those systems that can.", metavar="cpu|cuda")
]
PeerPython = Annotated[
    str | None, typer.Option(help="Python of an environment that has the peers; absent: no peers.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Write the record below DIR/<machine>/, as benchmarks/results.", metavar="DIR"),
]
Quick = Annotated[
    bool,
    typer.Option("--quick", help="Small shapes: checks that the benchmark runs; its times mean nothing."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def checked_device(device: str) -> str:
    """Returns `device`. Raises BenchError unless it is one that a benchmark can be told."""
    if device not in ("cpu", "cuda"):
        raise BenchError(f"got device={device!r}; expected cpu or cuda")
    return device


def measure(
    run: Callable[[Progress], Report | list[Report]],
    quick: bool,
    out: Path | None,
    as_json: bool,
    folder: str = "",
    title: str = "measuring",
) -> None:
    """Runs a benchmark beside a bar that it tells how far it is, and finishes with its reports."""
    with console.progress(title) as progress:
        found = run(progress)
    finish([found] if isinstance(found, Report) else found, quick, out, as_json, folder)


def finish(reports: list[Report], quick: bool, out: Path | None, as_json: bool, folder: str = "") -> None:
    """Prints the reports, and writes them to one file, named after the first, below `out`."""
    records = [harness.record(report, quick) for report in reports]
    result = records[0] if len(records) == 1 else {"benchmark": reports[0].name, "runs": records}
    if out is not None:
        write(result, harness.results_path(reports[0].name, quick, out, folder))
    if as_json:
        console.show_json(result)
    else:
        console.show(*map(harness.table, reports))


def write(result: dict[str, Any], path: Path) -> None:
    """Writes a record, and says where."""
    typer.echo(f"written: {harness.write_record(result, path)}", err=True)
