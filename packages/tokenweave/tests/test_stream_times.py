"""Times of steps on streams: those of a device with a clock of its own, in the place of a GPU; and on a GPU, if any."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenweave import stream_times
from tokenweave.plan import Lane, Op, Plan, Step, plan_forward
from tokenweave.stream_times import Alignment
from tokenweave.streams import CudaStreams, HostStreams, StreamExecutor

Told = list[tuple[Step, float, float]]
ISSUE_S = 3e-6  # what each call of the host takes
LOOK_S = 1e-6  # what it takes to ask whether an event has happened
SEEN_S = 4e-6  # from an event until a host that waits for it goes on


@dataclass
class FakeDevice:
    """Streams that work through what is queued while the host goes on, by two clocks that differ.

    An event is the time at which it happens, by the host's clock, which nobody but this class may read.
    """

    host_s: float = 5000.0
    rate: float = 1.0  # of the device's clock, by the host's
    free_s: dict[Lane, float] = field(default_factory=lambda: dict.fromkeys(Lane, 0.0))
    inside: Lane = Lane.COMPUTE
    true: Told = field(default_factory=list)
    num_waits: int = 0
    work_s: float = 1e-3

    def now(self) -> float:
        return self.host_s

    def stream(self, lane: Lane) -> Lane:
        return lane

    @contextmanager
    def on(self, stream: Lane) -> Iterator[None]:
        self.inside = stream
        yield
        self.inside = Lane.COMPUTE

    def record(self, stream: Lane) -> float:
        self.host_s += ISSUE_S
        self.free_s[stream] = max(self.free_s[stream], self.host_s)
        return self.free_s[stream]

    def wait(self, stream: Lane, event: float) -> None:
        self.host_s += ISSUE_S
        self.free_s[stream] = max(self.free_s[stream], event)

    def mark(self) -> float:
        return self.record(self.inside)

    def has_happened(self, event: float) -> bool:
        self.host_s += LOOK_S
        return event <= self.host_s

    def wait_until(self, event: float) -> None:
        self.num_waits += 1
        self.host_s = max(self.host_s, event) + SEEN_S

    def seconds(self, first: float, second: float) -> float:
        milliseconds = 1e3 * self.rate * (second - first)
        (rounded,) = struct.unpack("f", struct.pack("f", milliseconds))  # as CUDA gives it
        return 1e-3 * float(rounded)

    def handle(self, step: Step) -> None:
        self.host_s += ISSUE_S
        begun_s = max(self.free_s[step.lane], self.host_s)
        self.free_s[step.lane] = begun_s + self.work_s
        self.true.append((step, begun_s, begun_s + self.work_s))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    return made(monkeypatch)


def made(monkeypatch: pytest.MonkeyPatch, rate: float = 1.0) -> FakeDevice:
    found = FakeDevice(rate=rate)
    monkeypatch.setattr(stream_times, "perf_counter", found.now)
    return found


def run(device: FakeDevice, plan: Plan, told: Told, executor: StreamExecutor[Lane, float]) -> None:
    executor.run(plan, dict.fromkeys(Op, device.handle), lambda *step: told.append(step))


def check(told: Told, device: FakeDevice, within_s: float) -> None:
    assert [step for step, _, _ in told] == [step for step, _, _ in device.true]
    for (_, *found), (_, *expected) in zip(told, device.true, strict=True):
        assert found == pytest.approx(expected, rel=0, abs=within_s + ISSUE_S + 1e-7)


def test_the_observer_is_told_when_each_step_ran_on_its_stream_by_the_hosts_clock(
    device: FakeDevice,
) -> None:
    plan, executor = plan_forward(2, 8, 4), StreamExecutor(device)
    told: Told = []
    run(device, plan, told, executor)
    assert told == [], "the device has not done it"
    alignment = executor.times.collect()
    assert [step for step, _, _ in told] == list(plan.steps)
    check(told, device, alignment.within_s)
    spans = {id(step): (start_s, end_s) for step, start_s, end_s in told}
    for step in plan.steps:
        for other in step.waits_for:
            assert spans[id(plan.steps[other])][1] <= spans[id(step)][0]
    lanes = [[span for span in told if span[0].lane is lane] for lane in (Lane.COMPUTE, Lane.TRANSFER)]
    assert any(a[1] < b[2] and b[1] < a[2] for a in lanes[0] for b in lanes[1]), "lanes overlap"


@pytest.mark.parametrize("rate", [1 + 5e-5, 1 - 5e-5])
def test_drift_of_the_devices_clock_is_seen_and_taken_out(
    monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    device = made(monkeypatch, rate)
    executor = StreamExecutor(device)
    told: Told = []
    for _ in range(30):  # a minute
        run(device, plan_forward(1, 4), told, executor)
        device.host_s += 2.0
    alignment = executor.times.collect()
    assert alignment.drift == pytest.approx(1 / rate - 1, rel=1e-2)
    assert alignment.within_s < 1e-5
    check(told, device, alignment.within_s + 2e-6)  # roundings of float32 over a minute


def test_what_the_comparisons_themselves_may_be_off_by_is_no_drift(device: FakeDevice) -> None:
    told: Told = []
    executor = StreamExecutor(device)
    run(device, plan_forward(1, 4), told, executor)
    assert executor.times.collect().drift == 0.0
    for (_, begun_s, ended_s), (_, *true) in zip(told, device.true, strict=True):
        assert ended_s - begun_s == pytest.approx(true[1] - true[0], abs=2 * ISSUE_S)


def test_an_observed_run_waits_for_the_device_before_the_first_and_in_collect_alone(
    device: FakeDevice,
) -> None:
    executor, told = StreamExecutor(device), Told()
    run(device, plan_forward(1, 4), told, executor)
    num_waits = device.num_waits
    device.work_s = 10.0  # so that none of what follows is done
    for _ in range(3):
        run(device, plan_forward(1, 4), told, executor)
    assert device.num_waits == num_waits
    executor.times.collect()
    assert device.num_waits > num_waits


def test_a_run_is_issued_alike_with_and_without_an_observer(device: FakeDevice) -> None:
    """The same events and waits, in the same order, between the same steps."""
    plan, executor = plan_forward(2, 8, 4), StreamExecutor(device)

    def issued(observe: bool) -> list[object]:
        seen: list[object] = []
        for name in ("record", "wait"):
            call = getattr(FakeDevice, name)
            setattr(device, name, lambda *given, call=call, name=name: note(seen, call, name, given))
        device.mark = lambda: FakeDevice.record(device, device.inside)  # type: ignore[method-assign]
        handlers = dict.fromkeys(Op, lambda step: seen.append(step))
        executor.run(plan, handlers, (lambda *step: None) if observe else None)
        return seen

    def note(seen: list[object], call: object, name: str, given: tuple[object, ...]) -> float | None:
        seen.append((name, given[0]))
        found: float | None = call(device, *given)  # type: ignore[operator]
        return found

    assert issued(True) == issued(False)


def test_pending_events_are_bounded_and_no_run_is_lost(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that falls behind is waited for, run by run."""
    plan, executor = plan_forward(1, 4), StreamExecutor(device)
    monkeypatch.setattr(stream_times, "MAX_PENDING", 3 * len(plan.steps))
    told: Told = []
    device.work_s = 1.0
    for _ in range(8):
        run(device, plan, told, executor)
        assert len(executor.times._pending) <= 3
    executor.times.collect()
    assert len(told) == 8 * len(plan.steps)
    check(told, device, 2e-5)


def test_events_that_have_happened_are_let_go_between_runs(device: FakeDevice) -> None:
    executor = StreamExecutor(device)
    for _ in range(5):
        run(device, plan_forward(1, 4), [], executor)
        device.host_s += 1.0
    assert len(executor.times._pending) == 1, "the last run was not done when it was issued"


def test_of_a_long_recording_the_last_steps_are_told(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, executor = plan_forward(1, 4), StreamExecutor(device)
    monkeypatch.setattr(stream_times, "MAX_STEPS", 2 * len(plan.steps) + 1)
    told: list[int] = []
    for number in range(5):
        executor.run(plan, dict.fromkeys(Op, device.handle), lambda *step, of=number: told.append(of))
    executor.times.collect()
    assert told == [3] * len(plan.steps) + [4] * len(plan.steps)


def test_a_second_recording_begins_anew(device: FakeDevice) -> None:
    executor, first, second = StreamExecutor(device), Told(), Told()
    run(device, plan_forward(1, 4), first, executor)
    executor.times.collect()
    device.host_s += 1000.0
    device.true.clear()
    run(device, plan_forward(1, 4, 2), second, executor)
    alignment = executor.times.collect()
    assert len(first) == len(plan_forward(1, 4).steps)
    check(second, device, alignment.within_s)
    assert executor.times.collect() == Alignment(0.0, 0.0), "nothing was observed"


def test_a_step_that_raised_is_not_told_and_those_before_it_are(device: FakeDevice) -> None:
    plan, executor = plan_forward(1, 4, 2), StreamExecutor(device)
    told: Told = []

    def handle(step: Step) -> None:
        if step.op is Op.MLP:
            raise ZeroDivisionError
        device.handle(step)

    with pytest.raises(ZeroDivisionError):
        executor.run(plan, dict.fromkeys(Op, handle), lambda *step: told.append(step))
    executor.times.collect()
    assert [step for step, _, _ in told] == [step for step, _, _ in device.true]
    assert len(told) == next(at for at, step in enumerate(plan.steps) if step.op is Op.MLP)


def test_in_order_all_steps_are_timed_on_the_callers_stream(device: FakeDevice) -> None:
    plan, executor = plan_forward(1, 8, 4), StreamExecutor(device)
    told: Told = []

    def handle(step: Step) -> None:
        assert device.inside is Lane.COMPUTE
        device.handle(Step(Op.MLP))

    executor.run_in_order(plan, dict.fromkeys(Op, handle), lambda *step: told.append(step))
    executor.times.collect()
    assert [step for step, _, _ in told] == list(plan.steps)
    assert all(before[2] <= after[1] for before, after in pairwise(told))


@given(split=st.none() | st.integers(1, 7), layers=st.integers(1, 3))
def test_on_the_host_the_times_are_those_at_which_the_handlers_ran(split: int | None, layers: int) -> None:
    plan, executor = plan_forward(layers, 8, split), StreamExecutor(HostStreams())
    told: Told = []
    inside: list[float] = []
    handlers = dict.fromkeys(Op, lambda step: inside.append(stream_times.perf_counter()))
    executor.run(plan, handlers, lambda *step: told.append(step))
    within_s = executor.times.collect().within_s + 1e-9  # and what sums are rounded by
    assert [step for step, _, _ in told] == list(plan.steps)
    for (_, begun_s, ended_s), ran_s in zip(told, inside, strict=True):
        assert begun_s - within_s <= ran_s <= ended_s + within_s


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_steps_are_told_within_the_time_that_the_host_saw() -> None:
    plan, executor = plan_forward(2, 8, 4), StreamExecutor(CudaStreams())
    slots = {lane: torch.zeros(1 << 22, device="cuda") for lane in Lane}
    told: Told = []

    def handle(step: Step) -> None:
        for _ in range(10):
            slots[step.lane].add_(1)

    handlers = dict.fromkeys(Op, handle)
    executor.run(plan, handlers)
    torch.cuda.synchronize()
    begun_s = stream_times.perf_counter()
    executor.run(plan, handlers, lambda *step: told.append(step))
    torch.cuda.synchronize()
    ended_s = stream_times.perf_counter()
    within_s = executor.times.collect().within_s
    assert [step for step, _, _ in told] == list(plan.steps)
    spans = [(start_s, end_s) for _, start_s, end_s in told]
    assert begun_s - within_s <= min(start_s for start_s, _ in spans)
    assert max(end_s for _, end_s in spans) <= ended_s + within_s
    for (start_s, end_s), step in zip(spans, plan.steps, strict=True):
        assert start_s < end_s
        assert all(spans[other][1] <= start_s + 1e-6 for other in step.waits_for)
