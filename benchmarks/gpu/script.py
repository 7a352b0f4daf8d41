"""The whole of `make gpu`: one stage after the other, whatever becomes of those before."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.gpu.findings import NoDevice, State
from benchmarks.gpu.process import StageOutcome, run_bounded
from benchmarks.gpu.stages import BUDGET_S, QUICK_BUDGET_S, Stage, StageOptions
from benchmarks.harness.processes import ROOT, module_command
from interlace.environment import subprocess_environment

SOURCES = [ROOT / "packages" / name / "src" for name in ("emucxl", "tokenweave", "interlace")]
DRY_TIMES = (
    4.0  # a processor that interprets kernels may take so many times as long, beside whatever else it does
)
LEAST_S = 5.0  # a stage that has less time left is not begun

Announce = Callable[[StageOutcome], None]
RunStage = Callable[[Stage, StageOptions, Path], StageOutcome]


def run_stage(stage: Stage, options: StageOptions, folder: Path) -> StageOutcome:
    """Runs `stage` in a process; its file and what it prints are in `folder`."""
    path, log = folder / f"{stage.name}.json", folder / f"{stage.name}.log"
    command = module_command("benchmarks.gpu.stage", stage.name, path, json.dumps(asdict(options)))
    environment = environment_of(options.is_dry_run)
    return run_bounded(stage.name, command, path, log, options.bound_s, environment)


def environment_of(is_dry_run: bool) -> dict[str, str]:
    """So that a stage finds this checkout's sources where nothing is installed, and says where it is if it hangs."""
    own = subprocess_environment()
    others = (ROOT / "tests", ROOT / "docs" / "images", ROOT)
    paths = [*map(str, (*SOURCES, *others)), *filter(None, [own.get("PYTHONPATH")])]
    changes = {
        "PYTHONPATH": ":".join(paths),
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "32",  # ranks are streams that wait for each other: no two may share a queue
    }
    return own | changes | ({"TRITON_INTERPRET": "1"} if is_dry_run else {})


def run_stages(
    stages: Sequence[Stage],
    options: StageOptions,
    folder: Path,
    announce: Announce,
    run_one: RunStage = run_stage,
) -> list[StageOutcome]:
    """How each of `stages` ended, but for those that a quick run leaves out; `announce` is told at once.

    Raises:
        NoDevice: the first stage that needs a GPU found none, so no stage would.
    """
    times = DRY_TIMES if options.is_dry_run else 1.0
    left_s = times * (QUICK_BUDGET_S if options.is_quick else BUDGET_S)
    outcomes = []
    for stage in stages:
        if not stage.bound(options.is_quick):
            continue
        bound_s = times * stage.bound(options.is_quick)
        if stage.is_counted:
            bound_s = min(bound_s, left_s)
        if bound_s < LEAST_S:
            outcome = StageOutcome(
                stage.name, State.NOT_RUN, "the stages before it took all the time", 0.0, (), {}
            )
        else:
            outcome = run_one(stage, replace(options, bound_s=bound_s), folder)
        if outcome.state is State.NO_DEVICE:
            raise NoDevice(
                f"nothing to measure: {outcome.reason}; --dry-run tries the script itself without a GPU"
            )
        left_s -= outcome.seconds if stage.is_counted else 0.0
        outcomes.append(outcome)
        announce(outcome)
    return outcomes
