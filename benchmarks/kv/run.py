"""Run: the rows in order, and the targets of those that ran."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness.target import Target
from benchmarks.kv import hidden, hits, no_reuse, sweep
from benchmarks.kv.setting import Setting
from emucxl.bench.harness import Progress, Report, part_of
from interlace.cli.bench.tiered import TieredEngine
from interlace.errors import BenchError

ROWS = ("hits", "hidden", "no-reuse", "sweep")


def chosen(rows: str) -> tuple[str, ...]:
    """The rows that `rows` names, with commas; all without a name.

    Raises:
        BenchError: there is no such row.
    """
    names = [name.strip() for name in rows.split(",") if name.strip()]
    if unknown := [name for name in names if name not in ROWS]:
        raise BenchError(f"got rows {unknown}; expected some of {list(ROWS)}")
    return tuple(name for name in ROWS if name in names or not names)


def run(
    setting: Setting,
    rows: tuple[str, ...],
    python: str | None,
    tell: Callable[[str], None],
    progress: Progress | None = None,
) -> list[Report]:
    """The tables of `rows`; `tell` hears which one, or which part, begins. Hits tell others what this machine does.

    Raises:
        BenchError: an answer has other bits than without tiers, or a system fails.
    """
    started_s = time.perf_counter()
    found: list[Report] = []
    targets: list[Target] = []

    told = {""}

    def say(text: str) -> None:
        if text not in told:
            told.add(text)
            tell(f"{time.perf_counter() - started_s:5.0f} s  {text}")

    def begin(row: str) -> Progress:
        say(row)
        share = part_of(progress, ROWS.index(row), len(ROWS), row)

        def advance(done: float, what: str) -> None:
            part = what.rpartition(": ")[0]
            say(part and f"{row}: {part}")
            if share is not None:
                share(done, what)

        return advance

    with contextlib.ExitStack() as stack:
        if rows != ("no-reuse",):
            plain = stack.enter_context(contextlib.closing(setting.engine()))
            have = _measure_hits(setting, plain, python, tell, begin("hits"))
            found += hits.reports(setting, have)
            targets += have.targets()
        if "hidden" in rows:
            shares = hidden.measure(setting, plain, have, begin("hidden"))
            found.append(hidden.report(setting, shares))
            targets += shares.targets()
        if "no-reuse" in rows:
            rates = no_reuse.measure(setting, begin("no-reuse"))
            found.append(no_reuse.report(setting, rates))
            targets += no_reuse.targets(rates)
        if "sweep" in rows:
            links = sweep.measure(setting, plain, have, begin("sweep"))
            found.append(sweep.report(setting, links))
            targets += sweep.targets(links)
    say("done")
    return found if setting.is_quick else [*found, targets_report(targets)]


def _measure_hits(
    setting: Setting,
    plain: TieredEngine,
    python: str | None,
    tell: Callable[[str], None],
    progress: Progress | None,
) -> hits.Hits:
    """With vLLM where `python` has it. It is there for this row alone."""
    with contextlib.ExitStack() as stack:
        peer = None
        if python is not None:
            tell("         starting vLLM, which compiles")
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="interlace-bench-")))
            peer = hits.start_peer(setting, python, directory)
            stack.callback(peer.worker.close)
        return hits.measure(setting, plain, peer, progress)


def targets_report(targets: list[Target]) -> Report:
    """One row for each target."""
    return Report(
        name="kv",
        title="Targets",
        columns=("target", "wanted", "got", "met"),
        rows=tuple(
            (
                target.name,
                f"{'<=' if target.at_most else '>='} {target.wanted:g}",
                target.got.extremes_text(3),
                "yes" if target.is_met else "no",
            )
            for target in targets
        ),
        notes=("measured, but for those that say modelled; medians (extremes) of the rounds",),
        results={
            target.name: {
                **target.got.to_json("1", "modelled" if "(modelled)" in target.name else "measured"),
                "wanted": target.wanted,
                "is_met": target.is_met,
            }
            for target in targets
        },
    )
