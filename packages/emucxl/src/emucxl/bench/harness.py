"""The harness of every benchmark: interleaved rounds, median and spread, and a report as a table and as JSON.

The commands `emucxl bench` and `interlace bench` use it, and everything in a checkout's `benchmarks/`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from emucxl.bench import machine
from emucxl.errors import ArgumentError

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT = 1

Progress = Callable[[float, str], None]  # the fraction that is done, and what is being measured
Kind = Literal["measured", "modelled"]


@dataclass(frozen=True)
class Samples:
    """The values of one measure, in the order of its rounds."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ArgumentError("got no samples; expected at least one")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)

    @property
    def low(self) -> float:
        """The lower quartile."""
        return self._quartiles()[0]

    @property
    def high(self) -> float:
        """The upper quartile."""
        return self._quartiles()[2]

    def over(self, other: Samples) -> Samples:
        """This over `other`, round by round: a slow phase of the machine falls on both."""
        return Samples(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def text(self, digits: int = 0) -> str:
        """`median (low-high)`."""
        middle, low, high = (f"{value:,.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{middle} ({low}-{high})"

    def extremes_text(self, digits: int = 0) -> str:
        """`median (lowest-highest)`, for the few rounds of a long benchmark."""
        middle, low, high = (f"{value:,.{digits}f}" for value in (self.median, self.lowest, self.highest))
        return f"{middle} ({low}-{high})"

    def to_json(self, unit: str, kind: Kind = "measured") -> dict[str, Any]:
        return {
            "kind": kind,
            "unit": unit,
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "samples": list(self.values),
        }

    def _quartiles(self) -> list[float]:
        if len(self.values) == 1:
            return [self.values[0]] * 3
        return statistics.quantiles(self.values, n=4, method="inclusive")


def interleaved(
    measures: Mapping[str, Callable[[], float]], rounds: int, progress: Progress | None = None
) -> dict[str, Samples]:
    """One value of each measure per round; who begins changes from round to round, so that nobody always does."""
    if rounds < 1 or not measures:
        raise ArgumentError(f"got {rounds} rounds of {len(measures)} measures; expected at least one of each")
    names = list(measures)
    values: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for place, name in enumerate(names[first:] + names[:first]):
            if progress is not None:
                progress((number + place / len(names)) / rounds, name)
            values[name].append(measures[name]())
    if progress is not None:
        progress(1.0, "")
    return {name: Samples(tuple(found)) for name, found in values.items()}


def part_of(progress: Progress | None, place: int, count: int, label: str = "") -> Progress | None:
    """The progress of the part at `place` of `count`; `label` goes before what it says."""
    if progress is None:
        return None
    return lambda done, what: progress((place + done) / count, f"{label}: {what}" if label and what else what)


@dataclass(frozen=True)
class Report:
    """The findings of a benchmark: a table for a reader, and `results` for a program.

    Measured and modelled figures never share a column that does not say which is which.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    results: dict[str, object]


def table(report: Report) -> RenderableType:
    """The table of a report below its title, which may be wider, and above its notes."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table()
    for number, column in enumerate(report.columns):
        grid.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in report.rows:
        grid.add_row(*row)
    return Group(Text(report.title, style="bold"), grid, *(Text(note) for note in report.notes))


def record(report: Report, quick: bool) -> dict[str, Any]:
    """The report as JSON, with the machine it ran on and the commit it ran from."""
    return {
        "benchmark": report.name,
        "format": FORMAT,
        "source": machine.source(),
        "machine": machine.describe(),
        "is_quick": quick,
        "title": report.title,
        "columns": list(report.columns),
        "rows": [list(row) for row in report.rows],
        "notes": list(report.notes),
        "results": report.results,
    }


def results_path(
    name: str, quick: bool, directory: Path = Path("benchmarks/results"), folder: str = "memory"
) -> Path:
    """The file for the results of this machine below `directory`; `folder` is within the machine's."""
    return directory / machine.slug() / folder / (f"{name}-quick.json" if quick else f"{name}.json")


def write_report(report: Report, quick: bool, output: Path, folder: str = "memory") -> Path:
    """Writes the record to `output`: a .json file, or a directory of results (`results_path`). Returns the file."""
    path = output if output.suffix == ".json" else results_path(report.name, quick, output, folder)
    return write_record(record(report, quick), path)


def write_record(result: Mapping[str, Any], path: Path) -> Path:
    """Writes a record to `path`, with the directories above it. Returns the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ArgumentError(
            f"cannot write {path}: {error.strerror}; name a place that can be written"
        ) from error
    return path
