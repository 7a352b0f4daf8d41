"""The report of all stages, and its record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import State
from benchmarks.gpu.process import StageOutcome
from benchmarks.gpu.stages import STAGES, StageOptions
from benchmarks.harness.processes import ROOT
from emucxl.bench import harness
from emucxl.bench.harness import Report

COLUMNS = ("stage", "what", "got", "target", "verdict")
DRY_RUN = "a dry run on fakes: it says that the script runs; no figure of it means anything"


def report(outcomes: Sequence[StageOutcome], options: StageOptions) -> Report:
    """One row for each finding, and one for each stage that failed or did not run."""
    device = next((str(each.data["device"]) for each in outcomes if "device" in each.data), "no known device")
    kind = "dry run" if options.is_dry_run else "quick run" if options.is_quick else "full run"
    took = ", ".join(f"{each.stage} {each.seconds:.0f} s" for each in outcomes)
    notes = [f"took: {took}"]
    notes += [f"{each.stage}: {each.reason}" for each in outcomes if each.state is State.DONE and each.reason]
    return Report(
        name=options.name,
        title=f"gpu, {kind}, on {device}",
        columns=COLUMNS,
        rows=tuple(row for outcome in outcomes for row in _rows(outcome)),
        notes=tuple([*notes, DRY_RUN] if options.is_dry_run else notes),
        results={
            "device": device,
            "is_dry_run": options.is_dry_run,
            "stages": {each.stage: _to_json(each) for each in outcomes},
        },
    )


def is_good(outcomes: Sequence[StageOutcome]) -> bool:
    """Whether every stage is done; a target that is missed is a finding, no failure."""
    return all(outcome.state is State.DONE for outcome in outcomes)


def record(made: Report, is_quick: bool) -> dict[str, Any]:
    """The report's record. Without the native core it says less of the machine."""
    return without_folders(harness.record(made, is_quick))


def without_folders(result: dict[str, Any]) -> dict[str, Any]:
    """`result` without the names of this checkout's folder and the user's: records are published."""
    text = json.dumps(result).replace(f"{ROOT}/", "")
    home = Path.home()
    found: dict[str, Any] = json.loads(text.replace(f"{home}/", "~/") if len(home.parts) > 1 else text)
    return found


def _rows(outcome: StageOutcome) -> Iterator[tuple[str, ...]]:
    for found in outcome.findings:
        yield outcome.stage, found.what, found.got, found.target, found.verdict.value
    if outcome.state is not State.DONE:
        what = next((stage.what for stage in STAGES if stage.name == outcome.stage), "")
        yield outcome.stage, what, "", "", f"{outcome.state}: {outcome.reason}"


def _to_json(outcome: StageOutcome) -> dict[str, Any]:
    return {
        "state": outcome.state.value,
        "reason": outcome.reason,
        "seconds": outcome.seconds,
        "findings": [
            {"what": each.what, "got": each.got, "target": each.target, "verdict": each.verdict.value}
            for each in outcome.findings
        ],
        "data": outcome.data,
        "log": list(outcome.log),
    }
