"""The machine report: one table of a run, for a reader who has this machine and asks what it gives him."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.serve.systems import STORED
from emucxl.bench.harness import Samples
from interlace.errors import BenchError

Record = dict[str, Any]
PARTS = {
    "machine": dict,
    "source": dict,
    "model": dict,
    "threads": int,
    "rounds": int,
    "workloads": list,
    "systems": list,
}
FORMATS = {"bfloat16": "bf16", "float32": "f32", STORED: STORED}


def machine_report(record: Record) -> Table:
    """A row for each workload and format of the weights: Interlace, the best peer, their ratio, and the floor.

    `record` is what a run of `make bench serve` wrote. The ratio is the median of the rounds'.
    """
    machine, source = record["machine"], record["source"]
    table = Table(
        title=f"{machine['cpu']}, {record['threads']} threads; {record['model']['name']}; commit "
        f"{(source['commit'] or 'unknown')[:8]}; tokens/s, median of {record['rounds']} rounds",
        title_justify="left",
        title_style="bold",
    )
    for name in ("workload", "weights", "Interlace", "best peer", "", "ratio", "of the floor", "bound by"):
        table.add_column(
            name, justify="right" if name in ("Interlace", "", "ratio", "of the floor") else "left"
        )
    for row in rows(record):
        table.add_row(*row)
    return table


def read_record(path: Path) -> Record:
    """Reads what a run of `make bench serve` wrote.

    Raises: BenchError for a file that is none of its records.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read as a record: {error}") from error
    if not isinstance(record, dict) or record.get("benchmark") != "serve":
        raise BenchError(
            f"{path} is no record of `make bench serve`; expected a serve.json below benchmarks/results"
        )
    for key, kind in PARTS.items():
        if not isinstance(record.get(key), kind):
            raise BenchError(
                f"{path} is a damaged record: got {str(record.get(key))[:40]} for {key!r}, expected a {kind.__name__}"
            )
    return record


def rows(record: Record) -> Iterator[tuple[str, ...]]:
    """The cells of the table; a format that only one side ran has no ratio."""
    for workload in (each["name"] for each in record["workloads"]):
        for dtype, label in FORMATS.items():
            ours = _best(record, workload, dtype, is_ours=True)
            peer = _best(record, workload, dtype, is_ours=False)
            if ours is not None or peer is not None:
                yield workload, label, *_compared(ours, peer, workload), *_of_floor(ours, workload)


def _best(record: Record, workload: str, dtype: str, is_ours: bool) -> Record | None:
    """The fastest system of a format: one of Interlace's, or a peer."""
    found = [
        system
        for system in record["systems"]
        if system["dtype"] == dtype
        and (system["kind"] == "interlace") == is_ours
        and workload in system["samples"]
    ]
    return max(found, key=lambda system: float(system["summary"][workload]["median"]), default=None)


def _compared(ours: Record | None, peer: Record | None, workload: str) -> tuple[str, str, str, str]:
    own, theirs = (f"{side['summary'][workload]['median']:,.0f}" if side else "" for side in (ours, peer))
    name = peer["name"] if peer else ""
    if ours is None or peer is None:
        return own or "not run", name or "none ran", theirs, ""
    ratio = Samples(tuple(ours["samples"][workload])).over(Samples(tuple(peer["samples"][workload])))
    return own, name, theirs, ratio.extremes_text(2)


def _of_floor(system: Record | None, workload: str) -> tuple[str, str]:
    floor = system.get("floors", {}).get(workload) if system else None
    if system is None or floor is None:
        return "", ""
    return f"{system['summary'][workload]['median'] / floor['tokens_per_s']:.0%}", floor["bound_by"]
