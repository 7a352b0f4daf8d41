"""`make gpu` itself: stages that fail, hang, die and tell garbage; the order of stages; the table and the record."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.findings import (
    Finding,
    NoDevice,
    StageFile,
    State,
    Told,
    Verdict,
    asked,
    read,
)
from benchmarks.gpu.process import StageOutcome, run_bounded
from benchmarks.gpu.script import DRY_TIMES, LEAST_S, environment_of, run_stages
from benchmarks.gpu.stages import BUDGET_S, QUICK_BUDGET_S, STAGES, Stage, StageOptions, stages_named
from benchmarks.gpu.table import is_good, record, report
from interlace.errors import BenchError
from support.patience import wait_until

ROOT = Path(__file__).parents[2]
FOUND = Finding("answer", "42", ">= 40", Verdict.MET)
PATIENCE_S = 60.0  # of a stage that does not hang


def told(state: State, reason: str = "") -> str:
    return json.dumps(asdict(Told(state, reason, (FOUND,), {"more": [1]})))


def outcome_of(
    tmp_path: Path, script: str, state: State | None = State.BEGUN, bound_s: float = PATIENCE_S
) -> StageOutcome:
    """How a shell's `script` ends as a stage, that has told what it found before; None: that tells nothing."""
    if state is not None:
        (tmp_path / "before").write_text(told(state))
        script = f"cp {tmp_path}/before {tmp_path}/told; {script}"
    return run_bounded(
        "stage", ["sh", "-c", script], tmp_path / "told", tmp_path / "log", bound_s, environment_of(False)
    )


def test_a_file_says_what_was_found_before_its_stage_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    file = StageFile(path)
    assert read(path) == Told(State.BEGUN, "", (), {})
    file.show(Finding("answer", "41"), Finding("other", "1"))
    file.show(FOUND)
    file.keep(shapes=[1, 2])
    assert read(path) == Told(State.BEGUN, "", (FOUND, Finding("other", "1")), {"shapes": [1, 2]})
    file.end(State.FAILED, "no luck")
    assert read(path) == Told(State.FAILED, "no luck", (FOUND, Finding("other", "1")), {"shapes": [1, 2]})


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"state": "odd"}', '{"state": "done", "findings": 3}'])
def test_a_damaged_file_is_an_error_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "told").write_text(text)
    with pytest.raises(BenchError, match="what it told cannot be read: "):
        read(tmp_path / "told")


@pytest.mark.parametrize(("is_met", "verdict"), [(True, Verdict.MET), (False, Verdict.MISSED)])
def test_what_is_asked_for_is_met_or_missed(is_met: bool, verdict: Verdict) -> None:
    assert asked("a", "1", ">= 1", is_met).verdict is verdict


def test_a_stage_that_is_done_gives_its_findings_and_what_it_printed(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, "echo hello", State.DONE)
    assert (outcome.state, outcome.reason) == (State.DONE, "")
    assert (outcome.findings, outcome.data) == ((FOUND,), {"more": [1]})
    assert outcome.log == ("hello",)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "ended with status 3"),
        ("kill -SEGV $$", "died of SIGSEGV"),
        ("exit 0", "ended before it was done"),
        (r"printf '\377\376\000garbage'; exit 1", "ended with status 1"),
    ],
)
def test_a_stage_that_ends_badly_has_failed_and_its_findings_stay(
    tmp_path: Path, script: str, reason: str
) -> None:
    outcome = outcome_of(tmp_path, script)
    assert (outcome.state, outcome.reason) == (State.FAILED, reason)
    assert outcome.findings == (FOUND,)


def is_gone(pid: str) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_stage_that_hangs_is_ended_with_all_it_started_and_its_findings_stay(tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/child; wait"
    outcome = outcome_of(tmp_path, script, bound_s=1.0)
    assert (outcome.state, outcome.reason) == (State.FAILED, "took longer than 1 s")
    assert outcome.findings == (FOUND,)
    child = (tmp_path / "child").read_text().strip()
    wait_until(lambda: is_gone(child), "the end of what it had started")


def test_sigterm_ends_the_stage_that_runs(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu.process import run_bounded; "
        "at = Path(sys.argv[1]); run_bounded('stage', ['sh', '-c', f'echo $$ > {at}/pid; exec sleep 600'], "
        "at / 'told', at / 'log', 600, {})"
    )
    script = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment_of(False))
    pid = tmp_path / "pid"
    wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"))
    script.terminate()
    assert script.wait(PATIENCE_S) == 128 + signal.SIGTERM
    wait_until(lambda: is_gone(pid.read_text().strip()), "the end of the stage")


@pytest.mark.slow
def test_a_stage_that_hangs_says_where(tmp_path: Path) -> None:
    script = "import time\ndef stuck():\n    time.sleep(300)\nstuck()"
    command = [sys.executable, "-S", "-c", script]
    outcome = run_bounded("s", command, tmp_path / "told", tmp_path / "log", 5.0, environment_of(False))
    assert outcome.reason.startswith("took longer than 5 s; it told nothing")
    assert any("in stuck" in line for line in outcome.log), outcome.log


def test_what_a_stage_leaves_running_ends_with_it(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, f"sleep 300 & echo $! > {tmp_path}/child", State.DONE)
    assert outcome.state is State.DONE
    child = (tmp_path / "child").read_text().strip()
    wait_until(lambda: is_gone(child), "the end of what it left running")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo last words; exit 4", "ended with status 4; it told nothing; its last line: last words"),
        ("exit 0", "ended; it told nothing; its last line: it printed nothing"),
    ],
)
def test_a_stage_that_tells_nothing_has_failed(tmp_path: Path, script: str, reason: str) -> None:
    outcome = outcome_of(tmp_path, script, None)
    assert (outcome.state, outcome.reason, outcome.findings) == (State.FAILED, reason, ())


def test_a_stage_that_tells_garbage_has_failed(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, f"echo '{{{{' > {tmp_path}/told")
    assert outcome.state is State.FAILED
    assert "what it told cannot be read" in outcome.reason


def test_a_stage_that_dies_after_it_was_done_is_done_and_the_reason_is_kept(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, "kill -SEGV $$", State.DONE)
    assert (outcome.state, outcome.reason) == (State.DONE, "died of SIGSEGV, after it was done")


class Runs:
    """Runs stages by a table of how they end; remembers what each was given."""

    def __init__(self, states: dict[str, State] | None = None, seconds: float = 1.0) -> None:
        self.states, self.seconds = states or {}, seconds
        self.bounds: dict[str, float] = {}
        self.announced: list[str] = []

    def run(self, stages: tuple[Stage, ...], options: StageOptions, folder: Path) -> list[StageOutcome]:
        return run_stages(stages, options, folder, self._announce, self._run_one)

    def _announce(self, outcome: StageOutcome) -> None:
        self.announced.append(outcome.stage)

    def _run_one(self, stage: Stage, options: StageOptions, folder: Path) -> StageOutcome:
        self.bounds[stage.name] = options.bound_s
        state = self.states.get(stage.name, State.DONE)
        return StageOutcome(stage.name, state, "", self.seconds, (FOUND,), {})


def test_a_stage_that_fails_or_does_not_run_keeps_no_other_from_running(tmp_path: Path) -> None:
    runs = Runs({"machine": State.FAILED, "fused": State.NOT_RUN})
    outcomes = runs.run(STAGES, StageOptions(), tmp_path)
    assert [each.stage for each in outcomes] == [stage.name for stage in STAGES] == runs.announced
    assert not is_good(outcomes)


def test_without_a_device_no_further_stage_is_tried(tmp_path: Path) -> None:
    runs = Runs({"fused": State.NO_DEVICE})
    with pytest.raises(NoDevice, match="nothing to measure"):
        runs.run(STAGES, StageOptions(), tmp_path)
    assert list(runs.bounds)[-1] == "fused"


@pytest.mark.parametrize(("is_quick", "budget_s"), [(False, BUDGET_S), (True, QUICK_BUDGET_S)])
def test_the_stages_that_are_counted_share_the_time_that_there_is(
    tmp_path: Path, is_quick: bool, budget_s: float
) -> None:
    stages = tuple(Stage(name, "", budget_s, budget_s) for name in ("a", "b", "c"))
    build = Stage("build", "", 2 * budget_s, 2 * budget_s, is_counted=False)
    runs = Runs(seconds=budget_s - LEAST_S - 1)
    outcomes = runs.run((build, *stages), StageOptions(is_quick=is_quick), tmp_path)
    assert runs.bounds == {"build": 2 * budget_s, "a": budget_s, "b": LEAST_S + 1}
    assert (outcomes[-1].state, outcomes[-1].stage) == (State.NOT_RUN, "c")
    assert "took all the time" in outcomes[-1].reason


def test_a_dry_run_may_take_longer(tmp_path: Path) -> None:
    runs = Runs(seconds=BUDGET_S)
    outcomes = runs.run(
        (Stage("a", "", 10, 5), Stage("b", "", 10, 5)), StageOptions(is_dry_run=True), tmp_path
    )
    assert runs.bounds == {"a": 10 * DRY_TIMES, "b": 10 * DRY_TIMES}
    assert is_good(outcomes)


def test_a_quick_run_leaves_stages_out_and_is_good_without_them(tmp_path: Path) -> None:
    runs = Runs(seconds=0.0)
    outcomes = runs.run(STAGES, StageOptions(is_quick=True), tmp_path)
    assert set(runs.announced) == {stage.name for stage in STAGES} - {"tune", "woven", "peers"}
    assert is_good(outcomes)


def test_stages_are_chosen_by_name_and_keep_their_order() -> None:
    assert stages_named(None) == STAGES
    assert [stage.name for stage in stages_named(["streams", "machine"])] == ["machine", "streams"]
    with pytest.raises(BenchError, match="got the stages nonsense; expected some of machine, "):
        stages_named(["nonsense"])


OUTCOMES = [
    StageOutcome(
        "machine", State.DONE, "died of SIGSEGV, after it was done", 3.0, (FOUND,), {"device": "NVIDIA X"}
    ),
    StageOutcome("fused", State.FAILED, "took longer than 9 s", 9.0, (), {}, ("last line",)),
    StageOutcome("overlap", State.NOT_RUN, "no time", 0.0, (), {}),
]


def test_the_table_has_a_row_for_each_finding_and_for_each_stage_that_is_not_done() -> None:
    made = report(OUTCOMES, StageOptions())
    assert made.rows == (
        ("machine", "answer", "42", ">= 40", "met"),
        ("fused", "the fused operation, ranks on one GPU", "", "", "failed: took longer than 9 s"),
        ("overlap", "products beside communication", "", "", "not run: no time"),
    )
    assert made.title == "gpu, full run, on NVIDIA X"
    assert made.notes == (
        "took: machine 3 s, fused 9 s, overlap 0 s",
        "machine: died of SIGSEGV, after it was done",
    )
    stages: Any = made.results["stages"]
    assert stages["fused"] == {
        "state": "failed",
        "reason": "took longer than 9 s",
        "seconds": 9.0,
        "findings": [],
        "data": {},
        "log": ["last line"],
    }


def test_the_table_of_a_dry_run_says_that_it_means_nothing() -> None:
    made = report(OUTCOMES, StageOptions(is_dry_run=True))
    assert "dry run" in made.title
    assert "no figure of it means anything" in made.notes[-1]


def test_a_record_names_no_folder_of_the_machine() -> None:
    said = f"{ROOT}/packages/some/test.py and {Path.home()}/cache failed"
    outcome = StageOutcome("tests", State.FAILED, said, 1.0, (Finding(said, said),), {said: [said]}, (said,))
    text = json.dumps(record(report([outcome], StageOptions()), False))
    assert str(ROOT) not in text
    assert f"{Path.home()}/" not in text
    assert "packages/some/test.py and ~/cache failed" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_leaves_nothing(invoke: Callable[..., Any], tmp_path: Path) -> None:
    result = invoke("gpu", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "error: nothing to measure: there is no CUDA device" in result.stderr
    assert "--dry-run" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_stage_is_an_error_that_names_the_stages(invoke: Callable[..., Any]) -> None:
    result = invoke("gpu", "--stages", "machine,nonsense")
    assert result.exit_code == 1
    assert "expected some of machine, build" in result.stderr


@pytest.mark.parametrize(("target", "options"), [("gpu", "gpu"), ("gpu-quick", "gpu --quick")])
def test_make_runs_it_from_the_sources(target: str, options: str) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", target, "GPU_PYTHON=python3", "ARGS=--stages fused"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip().endswith(f"python3 -m benchmarks {options} --stages fused")
    assert done.stdout.startswith("PYTHONPATH=packages/emucxl/src:")


def test_the_name_of_the_benchmark_is_no_target() -> None:
    words = ["make", "--no-print-directory", "--dry-run", "bench", "gpu", "ARGS=--quick"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if "-m benchmarks" in line] == [
        line for line in done.stdout.splitlines() if line.strip().endswith("-m benchmarks gpu --quick")
    ]
