"""The stages of `make gpu`: the whole of it on fakes, and what each makes of its figures."""

from __future__ import annotations

import ctypes
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu.build import build
from benchmarks.gpu.device import StandIn, check_close
from benchmarks.gpu.findings import State, Verdict
from benchmarks.gpu.floors import Floors
from benchmarks.gpu.fused import FusedCase, findings
from benchmarks.gpu.kernels import finding as kernel_finding
from benchmarks.gpu.overlap import overlap_text, slow_down
from benchmarks.gpu.process import StageOutcome
from benchmarks.gpu.registers import Registers, registers_of
from benchmarks.gpu.script import environment_of, run_stage
from benchmarks.gpu.stack import StackInput, StackShape
from benchmarks.gpu.stages import STAGES, StageOptions, stages_named
from benchmarks.gpu.woven import RANKS
from emucxl.bench.harness import Samples
from interlace.errors import BenchError

PATIENCE_S = 150.0


# Stages that import transformers, or run whole models interpreted.
ENGINES = ("families", "engine", "woven", "peers")
LONGER = ("tests", "streams")  # they collect every test, and run a stack of layers in every order
LIGHT = [stage.name for stage in STAGES if stage.name not in (*ENGINES, *LONGER)]


def dry_run(invoke: Callable[..., Any], tmp_path: Path, names: list[str]) -> tuple[dict[str, Any], Path]:
    """The stages of a dry run, all done, and the file of its record."""
    pytest.importorskip("triton", reason="triton is not installed")
    result = invoke("gpu", "--dry-run", "--json", "--out", str(tmp_path), "--stages", ",".join(names))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    stages: dict[str, Any] = found["results"]["stages"]
    assert {name: each["state"] for name, each in stages.items()} == dict.fromkeys(names, "done")
    assert found["results"]["is_dry_run"]
    assert all(each["findings"] for each in stages.values())
    (path,) = tmp_path.glob("*/gpu-dry-run-*.json")
    assert json.loads(path.read_text()) == found
    assert list(tmp_path.iterdir()) == [path.parent], "the stages' own files are gone"
    return stages, path


def test_a_dry_run_goes_through_the_light_stages(invoke: Callable[..., Any], tmp_path: Path) -> None:
    dry_run(invoke, tmp_path, LIGHT)


@pytest.mark.slow
def test_a_dry_run_goes_through_the_stages_that_take_longer(
    invoke: Callable[..., Any], tmp_path: Path
) -> None:
    stages, path = dry_run(invoke, tmp_path, list(LONGER))
    with gzip.open(path.with_name(stages["streams"]["data"]["trace"]), "rt") as trace:
        assert json.load(trace)["traceEvents"]


@pytest.mark.slow
def test_a_dry_run_goes_through_the_stages_of_the_engine(invoke: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    stages, _ = dry_run(invoke, tmp_path, list(ENGINES))
    verdicts = {each["what"]: each["verdict"] for each in stages["families"]["findings"]}
    assert set(verdicts.values()) == {"met"}, verdicts
    assert {"logits_off_by", "cases"} <= stages["engine"]["data"].keys()
    woven = {each["what"]: each for each in stages["woven"]["findings"] if each["target"]}
    assert [each["verdict"] for each in woven.values()] == ["met"] * len(RANKS)
    compared = [names for names in stages["peers"]["data"]["peers"].values() if "transformers" in names]
    assert [list(names) for names in compared] == [["ours", "plain loop", "transformers"]] * 2


def outcome_of_tests(tmp_path: Path, files: dict[str, str], **options: Any) -> StageOutcome:
    """How the stage of tests ends where these are all the tests there are."""
    for name, text in files.items():
        path = tmp_path / "packages" / "some" / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (stage,) = stages_named(["tests"])
    chosen = StageOptions(is_dry_run=True, root=str(tmp_path), bound_s=PATIENCE_S, **options)
    return run_stage(stage, chosen, tmp_path)


GOOD = """
import pytest
pytestmark = pytest.mark.gpu
@pytest.mark.parametrize("number", [1, 2])
def test_good_graph(number): pass
"""
SKIPPED = """
import pytest
pytestmark = [pytest.mark.gpu, pytest.mark.skip(reason="there is no GPU")]
def test_left_out(): pass
"""
BAD = """
import pytest
@pytest.mark.gpu
def test_bad(): assert 1 == 2, "these differ"
@pytest.mark.gpu
def test_good(): pass
def test_without_the_mark(): assert False
"""
CRASH = """
import os, signal, pytest
@pytest.mark.gpu
def test_good(): pass
@pytest.mark.gpu
def test_crash(): os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_tests_with_the_mark_are_counted_by_file_and_those_that_fail_are_told(tmp_path: Path) -> None:
    others = {"test_skipped.py": SKIPPED, "test_other.py": "import nowhere"}
    outcome = outcome_of_tests(tmp_path, {"test_bad.py": BAD, "test_good.py": GOOD} | others)
    bad, good, skipped = outcome.findings
    assert (bad.what, bad.got, bad.verdict) == ("test_bad.py", "1 passed, 1 failed", Verdict.MISSED)
    assert (good.what, good.got, good.verdict) == ("test_good.py", "2 passed", Verdict.MET)
    assert (skipped.what, skipped.verdict) == ("test_skipped.py", Verdict.NOT_RUN)
    assert skipped.got == "1 skipped: there is no GPU"
    assert outcome.state is State.FAILED
    assert "1 tests failed: " in outcome.reason
    (lines,) = outcome.data["failures"].values()
    assert any("these differ" in line for line in lines)


def test_a_test_that_crashes_is_named_and_those_before_it_count(tmp_path: Path) -> None:
    outcome = outcome_of_tests(tmp_path, {"test_crash.py": CRASH})
    assert (outcome.state, outcome.reason) == (State.FAILED, "died of SIGSEGV")
    assert [each.got for each in outcome.findings] == ["1 passed"]
    assert outcome.data["running"].endswith("test_crash.py::test_crash")


@pytest.mark.slow
def test_a_file_that_cannot_be_imported_is_told_and_keeps_no_other_from_running(tmp_path: Path) -> None:
    odd = "import nowhere\npytest.mark.gpu"
    outcome = outcome_of_tests(tmp_path, {"test_a.py": odd, "test_good.py": GOOD})
    assert outcome.state is State.FAILED
    assert [(each.what, each.got) for each in outcome.findings] == [("test_good.py", "2 passed")]
    (lines,) = outcome.data["failures"].values()
    assert any("nowhere" in line for line in lines)


@pytest.mark.slow
def test_a_quick_run_takes_some_of_the_tests(tmp_path: Path) -> None:
    more = BAD.replace("test_bad", "test_whatever")
    outcome = outcome_of_tests(tmp_path, {"test_good.py": GOOD, "test_more.py": more}, is_quick=True)
    assert outcome.state is State.DONE
    assert [each.what for each in outcome.findings] == ["test_good.py"]


def cmake_project(root: Path, source: str) -> Path:
    """A package with a library in C, as those of this checkout are made."""
    package = root / "packages" / "some"
    package.mkdir(parents=True)
    (package / "some.c").write_text(source)
    (package / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(some LANGUAGES C)\nadd_library(some SHARED some.c)\n"
        "install(TARGETS some LIBRARY DESTINATION some)\n"
    )
    return package


def test_a_library_is_built_beside_its_sources(tmp_path: Path) -> None:
    package = cmake_project(tmp_path, "int answer(void) { return 42; }")
    build(tmp_path, "some")
    assert ctypes.CDLL(str(package / "src" / "some" / "libsome.so")).answer() == 42
    assert (tmp_path / "build" / "gpu" / "some").is_dir()


def test_a_build_that_fails_says_the_compilers_error(tmp_path: Path) -> None:
    cmake_project(tmp_path, "int answer(void) { return nowhere; }")
    with pytest.raises(BenchError, match=r"`cmake --build` failed: .*error: .*nowhere"):
        build(tmp_path, "some")


def case(peers: float, separate: float, copy: float, spilled: int = 0) -> FusedCase:
    def samples(value: float) -> Samples:
        return Samples((value, value))

    found = {
        "peers 2": samples(10 * peers),
        "peers 16": samples(peers),
        "separate": samples(separate),
        "copy": samples(copy),
        "copy 2": samples(9 * copy),
        "copy 16": samples(2 * copy),
    }
    quick = found | {"one shot 16": samples(peers / 4)}
    registers = (Registers("peers", 83, spilled, 512),)
    return FusedCase(2, 4096, {1: quick, 2048: found}, {1: 1000, 2048: 2_000_000}, registers)


def test_the_fused_operation_is_held_against_its_worst_gain_and_the_rate_of_a_copy() -> None:
    gain, of_copy, registers = findings(case(peers=10.0, separate=16.0, copy=9.0))
    assert gain.got == "1.60 at 2048 tokens (peers 16 CTAs)"
    assert of_copy.got == "90% at 200 GB/s (peers 16 CTAs; 180% of a copy by as many CTAs)"
    assert registers.got == "peers 83 x 512 threads; 0 words spilled"
    assert {each.verdict for each in (gain, of_copy, registers)} == {Verdict.MET}


def test_too_little_gain_too_slow_a_copy_and_spills_are_missed() -> None:
    found = findings(case(peers=10.0, separate=14.0, copy=7.0, spilled=4))
    assert [each.verdict for each in found] == [Verdict.MISSED] * 3


def test_the_fastest_path_at_few_tokens_may_be_another() -> None:
    assert case(10.0, 16.0, 9.0).best(1) == "one shot 16"
    assert case(10.0, 16.0, 9.0).best(2048) == "peers 16"


def test_registers_are_those_of_every_form_that_was_launched() -> None:
    class Metadata:
        num_warps = 16

    class Form:
        n_regs, n_spills, metadata = 83, 0, Metadata

    kernel = SimpleNamespace(device_caches={0: ({"one": Form, "two": Form}, "the rest")})
    assert registers_of("peers", kernel) == [Registers("peers", 83, 0, 512)] * 2
    assert registers_of("peers", object()) == []


@pytest.mark.parametrize(
    ("both", "text"), [(100.0, "100% hidden"), (140.0, "0% hidden"), (120.0, "50% hidden")]
)
def test_what_is_hidden_is_a_share_of_the_shorter(both: float, text: str) -> None:
    values = {"products": 100.0, "reductions": 40.0, "both": both, "first reduction after": 9.0}
    assert overlap_text({name: Samples((value,)) for name, value in values.items()}).startswith(text)


def test_the_slow_down_names_the_product_that_loses_most() -> None:
    def beside(value: float) -> dict[int, Samples]:
        return {0: Samples((10.0,)), 4: Samples((value,))}

    found = slow_down({"qkv": {512: beside(11.0), 1024: beside(13.0)}, "o": {512: beside(12.0)}}, 4)
    assert found.got == "1.20 times as long; most 1.30 (qkv of 1024 tokens)"


def test_a_floor_is_the_longer_of_its_bytes_and_its_operations() -> None:
    floors = Floors(bytes_per_s=1e12, flops_per_s=1e15)
    assert floors.of(2e6, 1e9) == (2.0, "memory")
    assert floors.of(2e6, 1e10) == (10.0, "arithmetic")
    found = {"ours": Samples((4.0,)), "torch": Samples((6.0,))}
    told = kernel_finding("norm", found, *floors.of(2e6, 0.0))
    assert told.got == "4.0 (4.0-4.0) us, 50% of the floor (memory); torch takes 1.50 times as long"


def test_a_result_that_is_not_a_number_is_not_close() -> None:
    with pytest.raises(ArithmeticError, match="rows is off by nan"):
        check_close("rows", torch.tensor([float("nan")]), torch.ones(1), 1e-2)


def test_the_reference_of_a_stack_is_the_model_written_plainly() -> None:
    shape = StackShape(2, num_layers=1, num_tokens=3, hidden_size=8, inner_size=4, num_ctas=1)
    given = StackInput.random(StandIn(), shape)
    residual = given.rows[0] + given.rows[1]
    for layer in range(2):
        normed = residual * (residual.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        for rank in range(2):
            residual = residual + normed @ given.up[layer][rank] @ given.down[layer][rank]
    normed = residual * (residual.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    torch.testing.assert_close(given.reference(), normed)


OCCUPY = """
import torch
from benchmarks.gpu.standins import occupy_kernel
stop, began, told = (torch.zeros(2, dtype=kind) for kind in (torch.int32, torch.int64, torch.int32))
occupy_kernel[(2,)](stop, began, told, 1_000_000)
assert bool((began > 0).all()) and told.tolist() == [0, 0], "it waits for the time it may"
stop.fill_(1)
occupy_kernel[(2,)](stop, began, told, 1 << 60)
assert told.tolist() == [1, 1], "it ends when it is told to"
"""


def test_ctas_that_stay_end_when_they_are_told_to_or_after_their_time() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    words = [sys.executable, "-c", OCCUPY]
    done = subprocess.run(words, env=environment_of(True), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
