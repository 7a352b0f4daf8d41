"""The benchmark of a decode step: time is counted once, in the innermost phase, and everything is put back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serve import step
from benchmarks.serve.step import NATIVE, OTHER, PHASES, StepFigures, Stopwatch, decode_steps, measure
from interlace import LLM, SamplingParams
from interlace.engine import engine
from interlace.engine.scheduler import Scheduler
from interlace.errors import BenchError
from support.tiny_models import make_model
from tokenweave import native


def test_time_counts_for_the_innermost_phase_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 3.0, 10.0, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    watch = Stopwatch()
    inner = watch.timing("inner", lambda: None)
    watch.timing("outer", inner)()
    inner()
    assert watch.seconds == {"inner": 2.0 + 1.0, "outer": 8.0}


def test_a_call_that_fails_is_counted_too() -> None:
    watch = Stopwatch()

    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        watch.timing("phase", fail)()
    assert watch.seconds["phase"] > 0


def test_steps_have_every_phase_and_the_library_is_as_before(tmp_path: Path) -> None:
    make_model(tmp_path)
    before = (native.load().tw_replay, vars(engine)["build_batch"], Scheduler.schedule)
    params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    with LLM(str(tmp_path), threads=1, dtype="float32") as llm:
        tokens, steps = decode_steps(llm, [[1, 2, 3], [4, 5]], 9)
        assert tokens == [output.token_ids for output in llm.generate([[1, 2, 3], [4, 5]], params)]
    assert (native.load().tw_replay, vars(engine)["build_batch"], Scheduler.schedule) == before
    assert len(steps) == 7  # nine tokens; the first comes of a prompt, and the last step has no next one
    for each in steps:
        assert {NATIVE, OTHER, *PHASES} == set(each)
        assert all(seconds > 0 for seconds in each.values())


def test_figures_are_medians_over_the_steps() -> None:
    steps = [{NATIVE: 0.009, "pass": 0.0005, OTHER: 0.0005}, {NATIVE: 0.018, "pass": 0.001, OTHER: 0.001}]
    figures = StepFigures.of("float32", 1, steps)
    assert figures.step_ms == pytest.approx(15.0)
    assert figures.native_ms == pytest.approx(13.5)
    assert figures.python_fraction == pytest.approx(0.1)
    assert figures.phases_us["pass"] == pytest.approx(750)
    assert figures.phases_us["batch"] == 0
    assert figures.row()[4:6] == ("1,500", "10.0%")


def test_other_tokens_beside_other_prompts_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path)
    answers = iter([[[1]], [[2]]])
    monkeypatch.setattr(step, "decode_steps", lambda *_: (next(answers), [{NATIVE: 1.0}]))
    with pytest.raises(BenchError, match="not those at batch 1"):
        measure(str(tmp_path), "float32", 1, (1, 2), 3, 4)


def test_the_command_has_a_row_for_each_batch(invoke: Callable[..., Any], tmp_path: Path) -> None:
    make_model(tmp_path)
    result = invoke("step", "--quick", "--threads", "1", "--json", "--model", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert '"batch": 1' in result.stdout
    assert '"batch": 8' in result.stdout
