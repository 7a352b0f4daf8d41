"""The order of a run, with participants that only note when they were asked."""

from typing import Any, cast

import pytest

from benchmarks.serve import drive
from benchmarks.serve.drive import ServeOptions, ServeRun
from benchmarks.serve.participant import Participant
from benchmarks.serve.systems import SYSTEMS
from emucxl.bench import machine
from interlace.cli.bench.workload import QUICK, ServeWorkload
from interlace.errors import BenchError

Note = tuple[str, str, int]
BY_NAME = {system.name: system for system in SYSTEMS}


class FakeWorker:
    def close(self) -> None:
        pass


class FakeParticipant:
    def __init__(self, name: str, notes: list[Note], fails_in_round: int | None = None) -> None:
        self.system, self.worker, self.samples = BY_NAME[name], FakeWorker(), cast(dict[str, list[float]], {})
        self._notes, self._fails_in_round = notes, fails_in_round

    def measure(self, workload: ServeWorkload, vocab_size: int, seed: int) -> float:
        if seed == self._fails_in_round:
            raise BenchError("out of memory")
        self._notes.append((self.system.name, workload.name, seed))
        return float(seed)


def run_with(*participants: FakeParticipant) -> ServeRun:
    options = ServeOptions(is_quick=True, rounds=2, workloads=QUICK)
    return ServeRun(options, {}, cast(list[Participant], list(participants)))


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "busy_cores", lambda: 0.0)


def rounds(run: ServeRun) -> None:
    drive._rounds(run, vocab_size=1000, limits_worker=cast(Any, None), say=lambda text: None)


def test_systems_take_turns_within_every_workload() -> None:
    notes: list[Note] = []
    rounds(run_with(FakeParticipant("interlace-bf16", notes), FakeParticipant("hf-f32", notes)))
    names = ("interlace-bf16", "hf-f32")
    assert notes == [(name, w.name, number) for number in (0, 1, 2) for w in QUICK for name in names]


def test_the_warm_up_round_leaves_no_sample() -> None:
    participant = FakeParticipant("interlace-bf16", [])
    rounds(run_with(participant))
    assert participant.samples == {workload.name: [1.0, 2.0] for workload in QUICK}


def test_a_peer_that_fails_leaves_with_its_reason_and_the_others_go_on() -> None:
    notes: list[Note] = []
    ours, peer = (
        FakeParticipant("interlace-bf16", notes),
        FakeParticipant("vllm-bf16", notes, fails_in_round=1),
    )
    run = run_with(ours, peer)
    rounds(run)
    assert run.left_out == {"vllm-bf16": "out of memory"}
    assert [participant.system.name for participant in run.participants] == ["interlace-bf16"]
    assert len(ours.samples[QUICK[0].name]) == 2


def test_a_llama_cpp_that_dies_of_its_own_instructions_is_told_how_to_build_it() -> None:
    run, said = run_with(), list[str]()
    with drive._peer_may_fail(run, BY_NAME["llamacpp"], said.append):
        raise BenchError("the worker died of SIGILL during 'load': it printed nothing")
    assert "-DGGML_AMX_INT8=OFF" in run.left_out["llamacpp"]
    with drive._peer_may_fail(run, BY_NAME["hf-f32"], said.append):
        raise BenchError("the worker died of SIGILL during 'load': it printed nothing")
    assert "GGML" not in run.left_out["hf-f32"]


def test_interlace_failing_ends_the_run() -> None:
    with pytest.raises(BenchError, match="out of memory"):
        rounds(run_with(FakeParticipant("interlace-bf16", [], fails_in_round=0)))


@pytest.mark.parametrize("name", ["rounds", "threads"])
def test_a_run_needs_a_round_and_a_thread(name: str) -> None:
    with pytest.raises(BenchError, match=f"got {name}=0; expected at least 1"):
        ServeOptions(**{name: 0})


def test_other_work_on_the_machine_is_recorded_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "busy_cores", lambda: 1.5)
    said: list[str] = []
    run = run_with(FakeParticipant("interlace-bf16", []))
    drive._rounds(run, vocab_size=1000, limits_worker=cast(Any, None), say=said.append)
    assert run.foreign_cores == [1.5, 1.5, 1.5]
    assert any("1.5 cores busy" in text for text in said)
