"""Traces: what is recorded is what ran, and a file of them is one that Perfetto reads."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweave.errors import TraceError
from tokenweave.execute import run_sequential
from tokenweave.lanes import LaneExecutor
from tokenweave.plan import Lane, Op, Plan, Step, plan_forward
from tokenweave.stream_times import Alignment
from tokenweave.trace import Recorder, Trace, check_writable, measure, summarise
from tokenweave.trace import recorder as recorder_module

PRINT_CLOCK = "from tokenweave.trace import clock_id; print(clock_id().hex())"
NOTHING = dict.fromkeys(Op, lambda step: None)


def record(*plans: Plan, max_steps: int = 10_000) -> Recorder:
    recorder = Recorder(max_steps)
    for plan in plans:
        run_sequential(plan, NOTHING, recorder.observe(plan))
    return recorder


def made_up(plan: Plan, *times: tuple[float, float]) -> Trace:
    """A trace of one rank and one pass, whose steps ran then."""
    recorder = Recorder()
    observe = recorder.observe(plan)
    for step, (start, end) in zip(plan.steps, times, strict=True):
        observe(step, start, end)
    return Trace.join(recorder, [recorder.to_bytes()])


def test_every_step_of_every_lane_is_recorded_with_its_times() -> None:
    plan, recorder = plan_forward(3, 8, 4), Recorder()
    with LaneExecutor() as executor:
        executor.run(plan, NOTHING, recorder.observe(plan))
    (done,) = recorder.passes
    spans = list(done.spans())
    assert [span.step for span in spans] == list(plan.steps)
    assert all(span.start_s <= span.end_s for span in spans)
    for span in spans:
        assert all(spans[other].end_s <= span.start_s for other in span.step.waits_for)


def test_steps_that_did_not_run_have_no_span() -> None:
    plan, recorder = plan_forward(1, 4), Recorder()
    observe = recorder.observe(plan)
    observe(plan.steps[0], 1.0, 2.0)
    (done,) = recorder.passes
    assert [span.step for span in done.spans()] == [plan.steps[0]]


@given(st.lists(st.integers(1, 4), max_size=20), st.integers(1, 60))
def test_a_recorder_keeps_the_last_passes_within_its_bound(layers: list[int], max_steps: int) -> None:
    plans = [plan_forward(count, 8) for count in layers]
    recorder = record(*plans, max_steps=max_steps)
    kept = [done.plan for done in recorder.passes]
    assert kept == plans[len(plans) - len(kept) :]
    assert recorder.num_dropped == len(plans) - len(kept)
    assert len(kept) <= 1 or sum(len(plan.steps) for plan in kept) <= max_steps
    assert not plans or kept


def test_ranks_of_one_host_share_a_clock_and_those_of_others_are_moved_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_forward(1, 4)
    own, other = record(plan), record(plan)
    assert Trace.join(own, [own.to_bytes(), other.to_bytes()]).clock == Trace.clock
    monkeypatch.setattr(recorder_module, "clock_id", lambda: b"another machine's")
    other.mark_s = own.mark_s + 1000
    joined = Trace.join(own, [_before(own, monkeypatch), other.to_bytes()])
    assert "aligned at a barrier" in joined.clock
    (moved,), (there,) = joined.recordings[1].passes, other.passes
    assert [a - b for a, b in zip(there.times, moved.times, strict=True)] == pytest.approx(
        [1000] * len(moved.times)
    )


def test_a_trace_of_devices_says_how_well_their_clocks_were_placed() -> None:
    plan = plan_forward(1, 4)
    own, exact, drifting = record(plan), record(plan), record(plan)
    assert Trace.join(own, [own.to_bytes()]).clock == Trace.clock
    exact.alignment, drifting.alignment = Alignment(8e-6, 0.0), Alignment(5e-6, -12e-6)
    messages = [each.to_bytes() for each in (own, exact)]
    assert Trace.join(own, messages).clock.endswith("events placed on it within 8 us, drift: none seen")
    joined = Trace.join(own, [*messages, drifting.to_bytes()])
    assert joined.clock == f"{Trace.clock}; devices' events placed on it within 8 us, drift: -12 ppm"


def test_clock_of_another_time_namespace_is_another_clock() -> None:
    try:
        other = subprocess.run(
            ["unshare", "-T", "--monotonic", "1000", sys.executable, "-c", PRINT_CLOCK],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this machine or this user makes no time namespaces")
    own = subprocess.run(
        [sys.executable, "-c", PRINT_CLOCK], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert own == recorder_module.clock_id().hex() + "\n" != other
    assert len(other) == len(own)


def _before(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> bytes:
    with monkeypatch.context() as patch:
        patch.setattr(recorder_module, "clock_id", lambda: b"this machine's 1")
        return recorder.to_bytes()


def test_ranks_that_recorded_different_passes_are_refused() -> None:
    one, two = record(plan_forward(1, 4)), record(plan_forward(1, 4), plan_forward(1, 4))
    with pytest.raises(
        TraceError, match=r"rank 1 recorded 2 passes from pass 0; this rank recorded 1 from 0"
    ):
        Trace.join(one, [one.to_bytes(), two.to_bytes()])


def test_a_file_is_what_perfetto_expects(tmp_path: Path) -> None:
    recorder = record(plan_forward(2, 8, 3), plan_forward(2, 1))
    path = tmp_path / "out.json"
    Trace.join(recorder, [recorder.to_bytes()] * 2).write(path)
    found = json.loads(path.read_text())
    check_perfetto(found, ranks=2)
    steps = [event for event in found["traceEvents"] if event["ph"] == "X"]
    assert len(steps) == 2 * sum(len(done.plan.steps) for done in recorder.passes)
    (event,) = [e for e in steps if e["name"] == "mlp[1]'" and e["pid"] == 1]
    args = event["args"]
    assert (args["layer"], args["part"], args["num_tokens"], args["of_tokens"]) == (1, 1, 5, 8)
    assert list(tmp_path.iterdir()) == [path], "nothing else is left"


def check_perfetto(found: dict[str, Any], ranks: int) -> None:
    """The Trace Event Format, as far as it is used here."""
    named = {
        (event["name"], event["pid"], event.get("tid")): event["args"].get("name")
        for event in found["traceEvents"]
        if event["ph"] == "M"
    }
    steps = [event for event in found["traceEvents"] if event["ph"] == "X"]
    assert {event["ph"] for event in found["traceEvents"]} == {"M", "X"}
    assert {event["pid"] for event in steps} == set(range(ranks))
    assert min(event["ts"] for event in steps) == 0
    for rank in range(ranks):
        assert named["process_name", rank, 0] == f"rank {rank}"
        own = [event for event in steps if event["pid"] == rank]
        assert [event["ts"] for event in own] == sorted(event["ts"] for event in own)
        for thread in {event["tid"] for event in own}:
            on_lane = [event for event in own if event["tid"] == thread]
            assert {event["cat"] for event in on_lane} == {named["thread_name", rank, thread]}
            for before, after in pairwise(on_lane):
                assert before["ts"] + before["dur"] <= after["ts"] + 0.002, "a lane does one thing at a time"


def test_a_trace_reads_back_as_it_was_written(tmp_path: Path) -> None:
    plans = (plan_forward(2, 8, 3), plan_forward(2, 1), plan_forward(2, 1))
    recorder = record(*plans)
    written = Trace.join(recorder, [recorder.to_bytes()] * 2)
    written.write(tmp_path / "out.json")
    found = Trace.read(tmp_path / "out.json")
    assert (found.clock, found.num_dropped) == (written.clock, 0)
    zero_s = min(recorder.passes[0].times)
    for rank in (0, 1):
        assert [done.plan for done in found.recordings[rank].passes] == list(plans)
        for done, original in zip(found.recordings[rank].passes, recorder.passes, strict=True):
            expected = [second - zero_s for second in original.times]
            assert list(done.times) == pytest.approx(expected, abs=2e-9)
    assert found.recordings[0].passes[1].plan is found.recordings[1].passes[2].plan


def test_a_pass_that_failed_is_in_the_file_and_left_out_when_it_is_read(tmp_path: Path) -> None:
    plan, recorder = plan_forward(1, 4), Recorder()
    observe = recorder.observe(plan)
    for step in plan.steps[2:4]:
        observe(step, 1.0, 2.0)
    Trace.join(recorder, [recorder.to_bytes()]).write(tmp_path / "out.json")
    assert '"attention[0]"' in (tmp_path / "out.json").read_text()
    assert Trace.read(tmp_path / "out.json").recordings[0].passes == ()


def test_an_empty_trace_is_one(tmp_path: Path) -> None:
    recorder = Recorder()
    Trace.join(recorder, [recorder.to_bytes()]).write(tmp_path / "out.json")
    found = Trace.read(tmp_path / "out.json")
    assert found.recordings[0].passes == ()
    assert summarise(found).total.total_s == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello", "it is not JSON"),
        ("[1]", "got None"),
        ('{"traceEvents": []}', "got None"),
        ('{"traceEvents": [], "otherData": {"tokenweave_trace": 99}}', "got 99"),
        ('{"traceEvents": [{"ph": "X"}], "otherData": {"tokenweave_trace": 1}}', "damaged trace"),
        (None, "No such file"),
    ],
)
def test_what_is_no_trace_is_refused_and_says_why(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TraceError, match=message):
        Trace.read(path)


def test_a_file_that_cannot_be_written_is_noticed_before_and_after(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "out.json"):
        with pytest.raises(TraceError, match="cannot write the trace"):
            check_writable(path)
        with pytest.raises(TraceError, match="cannot write the trace"):
            Trace(()).write(path)
    assert list(tmp_path.glob(".*")) == [], "nothing is left"
    check_writable(tmp_path / "out.json")


def test_what_is_no_plain_file_is_written_to_and_stays_what_it_is(tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link.json", tmp_path / "target.json"
    os.mkfifo(pipe)
    link.symlink_to(target)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for path in (pipe, link):
            check_writable(path)
            Trace(()).write(path)
        assert json.loads(os.read(reader, 1 << 16)) == json.loads(target.read_text()) == Trace(()).to_json()
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert link.is_symlink()


CHAIN = Plan(
    2,
    (
        Step(Op.ATTENTION, (), 0, part=0),
        Step(Op.REDUCE_NORM, (0,), 0, 1, 0),
        Step(Op.ATTENTION, (), 0, part=1),
        Step(Op.REDUCE_NORM, (2,), 0, 2, 1),
    ),
    1,
)


def test_communication_is_hidden_where_the_same_ranks_compute_lane_is_inside_a_step() -> None:
    """Computing from 0 to 2 and from 3 to 5; communication from 2 to 4 (half of it hidden) and from 5 to 7."""
    found = made_up(CHAIN, (0, 2), (2, 4), (3, 5), (5, 7))
    layers: dict[str, Any] = {}
    figures = measure(found.recordings[0].passes[0], layers)
    assert (figures.total_s, figures.compute_s, figures.communication_s) == (7, 4, 4)
    assert (figures.hidden_s, figures.exposed_s, figures.blocked_s) == (1, 3, 3)
    assert figures.hidden_fraction == 0.25
    assert layers["0"].hidden_s == 1


WITH_BLOCKS = Plan(
    1,
    (
        Step(Op.EMBED),
        Step(Op.REDUCE_NORM, (0,), None, 0),
        Step(Op.FETCH, (), 0, part=None),
        Step(Op.ATTENTION, (1, 2), 0),
        Step(Op.STORE, (3,), 0, part=None),
    ),
)


def test_what_the_memory_lane_hides_is_told_apart_from_communication_and_hides_none_of_it() -> None:
    """A transfer from 2 to 6 and a fetch from 0 to 5 leave the compute lane nothing to do from 2 on."""
    layers: dict[str, Any] = {}
    moves: dict[str, Any] = {}
    found = made_up(WITH_BLOCKS, (0, 2), (2, 6), (0, 5), (6, 8), (8, 9))
    figures = measure(found.recordings[0].passes[0], layers, moves=moves)
    assert (figures.total_s, figures.blocked_s) == (9, 5)
    assert (figures.communication_s, figures.hidden_s) == (4, 0)
    assert (figures.memory_s, figures.memory_hidden_s, figures.memory_exposed_s) == (6, 2, 4)
    assert figures.memory_hidden_fraction == pytest.approx(2 / 6)
    assert figures.memory_blocked_s == 3 + 1, "for the fetch until 5, and at the end for the store"
    assert {name: each.memory_s for name, each in moves.items()} == {"fetch": 5, "store": 1}
    assert layers["0"].memory_hidden_s == 2


@pytest.mark.parametrize(
    ("fetch", "attention", "blocked_s"), [((0, 1), (6, 8), 0), ((0, 7), (7, 9), 5), ((3, 7), (8, 9), 5)]
)
def test_a_compute_lane_is_blocked_by_memory_while_its_next_step_waits_for_it(
    fetch: tuple[float, float], attention: tuple[float, float], blocked_s: float
) -> None:
    plan = Plan(1, WITH_BLOCKS.steps[:-1])
    found = made_up(plan, (0, 2), (2, 6), fetch, attention)
    assert measure(found.recordings[0].passes[0]).memory_blocked_s == blocked_s


def test_without_moves_nothing_is_said_of_a_memory_lane() -> None:
    recorder = record(plan_forward(2, 8, 4))
    found = summarise(Trace.join(recorder, [recorder.to_bytes()]))
    assert found.moves == {}
    assert (found.total.memory_s, found.total.memory_blocked_s) == (0, 0)
    assert found.total.memory_hidden_fraction == 1


def test_beside_what_was_measured_stands_what_the_simulator_makes_of_the_steps() -> None:
    """It knows no hole between 2 and 3: both parts compute for 2 s, one after the other."""
    figures = measure(made_up(CHAIN, (0, 2), (2, 4), (3, 5), (5, 7)).recordings[0].passes[0])
    assert figures.modelled_total_s == figures.undisturbed_total_s == pytest.approx(6)
    assert figures.modelled_blocked_s == pytest.approx(2)


def test_undisturbed_is_what_the_medians_over_the_layers_make() -> None:
    """Of three layers and the last, which is a kind of its own, one is ten times as slow as it should be."""
    plan, now, times = plan_forward(4, 4), 0.0, []
    for step in plan.steps:
        seconds = 10.0 if step.op is Op.MLP and step.layer == 1 else 1.0
        times.append((now, now + seconds))
        now += seconds
    figures = measure(made_up(plan, *times).recordings[0].passes[0])
    assert figures.total_s == figures.modelled_total_s == now
    assert figures.undisturbed_total_s == len(plan.steps)


def test_passes_are_summed_by_kind_and_layers_by_rank() -> None:
    recorder = record(plan_forward(2, 8, 4), plan_forward(2, 1), plan_forward(2, 1))
    found = summarise(Trace.join(recorder, [recorder.to_bytes()] * 2))
    counts = {(kind.num_tokens, kind.split): count for kind, (count, _) in found.kinds.items()}
    assert counts == {(8, 4): 1, (1, None): 2}
    assert list(found.layers) == ["embedding", "0", "1", "output"]
    total = found.total
    assert math.isclose(sum(each.compute_s for each in found.layers.values()), total.compute_s)
    assert math.isclose(sum(each.communication_s for each in found.layers.values()), total.communication_s)
    assert math.isclose(sum(each.total_s for _, each in found.kinds.values()), total.total_s)
    assert total.compute_s + total.blocked_s == pytest.approx(total.total_s)


def test_any_thread_may_report_a_step() -> None:
    plan, recorder = plan_forward(50, 8, 4), Recorder()
    observe = recorder.observe(plan)
    halves = [
        [step for step in plan.steps if (step.lane is Lane.COMPUTE) is compute] for compute in (True, False)
    ]
    threads = [
        threading.Thread(target=lambda own: [observe(s, 1.0, 2.0) for s in own], args=(own,))
        for own in halves
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(recorder.passes[0].spans())) == len(plan.steps)
