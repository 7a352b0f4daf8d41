"""The stream executor: on streams that write down what they are told, and on a GPU where there is one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.added_step import PEEK
from tokenweave.errors import PlanError
from tokenweave.plan import Lane, Op, Operation, Plan, Step, plan_forward
from tokenweave.streams import CudaStreams, StreamExecutor, Sync


@dataclass
class RecordingStreams:
    """Streams that do nothing but remember, each node in the order in which it was queued."""

    queued: dict[Lane, list[int]] = field(default_factory=lambda: {lane: [] for lane in Lane})
    steps: dict[int, Step] = field(default_factory=dict)  # node: the step that it is the work of
    waits: dict[int, int] = field(default_factory=dict)  # node: the node that it waits for
    inside: Lane | None = None
    nodes: int = 0

    def stream(self, lane: Lane) -> Lane:
        return lane

    @contextmanager
    def on(self, stream: Lane) -> Iterator[None]:
        self.inside = stream
        yield
        self.inside = None

    def record(self, stream: Lane) -> int:
        return self._queue(stream)

    def wait(self, stream: Lane, event: int) -> None:
        self.waits[self._queue(stream)] = event

    def mark(self) -> int:
        return self._queue(self.inside or Lane.COMPUTE)

    def has_happened(self, event: int) -> bool:
        return True

    def wait_until(self, event: int) -> None:
        """Nothing is ever behind."""

    def seconds(self, first: int, second: int) -> float:
        return float(second - first)

    def handle(self, step: Step) -> None:
        assert self.inside is step.lane
        self.steps[self._queue(step.lane)] = step

    def _queue(self, stream: Lane) -> int:
        self.queued[stream].append(self.nodes)
        self.nodes += 1
        return self.nodes - 1

    def before(self, node: int, *, without: int | None = None) -> set[int]:
        """Every node that is done before `node` begins; as if the wait `without` were not there."""
        previous = {after: at for queue in self.queued.values() for at, after in pairwise(queue)}
        seen: set[int] = set()
        left = [node]
        while left:
            at = left.pop()
            for other in (previous.get(at), None if at == without else self.waits.get(at)):
                if other is not None and other not in seen:
                    seen.add(other)
                    left.append(other)
        return seen


def run(plan: Plan) -> tuple[RecordingStreams, int, int]:
    """Returns the queued work, and the nodes of the caller's stream before and after the run."""
    streams = RecordingStreams()
    start = streams.record(Lane.COMPUTE)
    StreamExecutor(streams).run(plan, dict.fromkeys([*Op, PEEK], streams.handle))
    return streams, start, streams.record(Lane.COMPUTE)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any steps on three lanes, so that a lane can know of another through a third, with any edges."""
    steps: list[Step] = []
    for position in range(draw(st.integers(0, 14))):
        edges = draw(st.sets(st.integers(0, position - 1), max_size=4)) if position else set()
        steps.append(Step(draw(st.sampled_from([*Op, PEEK])), tuple(sorted(edges))))
    return Plan(1, tuple(steps))


def check(plan: Plan) -> None:
    streams, start, end = run(plan)
    node_of = {id(step): node for node, step in streams.steps.items()}
    nodes = [node_of[id(step)] for step in plan.steps]
    assert nodes == sorted(nodes), "issued in list order"
    for step, node in zip(plan.steps, nodes, strict=True):
        before = streams.before(node)
        assert {nodes[other] for other in step.waits_for} <= before
        assert start in before
    assert set(nodes) <= streams.before(end)
    for node, event in streams.waits.items():
        assert event not in streams.before(node, without=node), "a wait that others imply"
    recorded = set(range(streams.nodes)) - {start, end} - streams.steps.keys() - streams.waits.keys()
    assert recorded == set(streams.waits.values()) - {start}, "an event is recorded where one is waited for"


@given(plans())
def test_every_edge_is_implied_and_no_wait_is_needless(plan: Plan) -> None:
    check(plan)


@given(layers=st.integers(1, 4), split=st.none() | st.integers(1, 7))
def test_a_forward_pass_waits_once_for_each_step_that_changes_lanes(layers: int, split: int | None) -> None:
    plan = plan_forward(layers, 8, split)
    check(plan)
    streams, _, _ = run(plan)
    crossings = [
        step for step in plan.steps if any(plan.steps[o].lane is not step.lane for o in step.waits_for)
    ]
    assert len(streams.waits) == len(crossings) + 1, "and once at the end, for the gather"


def test_where_streams_wait_is_found_once_for_each_plan_and_forgotten_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Plan] = []
    find = Sync.of
    monkeypatch.setattr(Sync, "of", lambda plan: (found.append(plan), find(plan))[1])
    streams = RecordingStreams()
    executor = StreamExecutor(streams)
    plans = [Plan(4, plan_forward(1, 4).steps), Plan(4, plan_forward(2, 4, 2).steps, 2)]
    for plan in [*plans, *plans]:
        executor.run(plan, dict.fromkeys(Op, streams.handle))
    assert found == plans
    dead = [weakref.ref(plan) for plan in plans]
    found.clear()
    plans.clear()
    streams.steps.clear()
    del plan
    gc.collect()
    assert [ref() for ref in dead] == [None, None]
    assert not executor._syncs


def test_the_steps_that_somebody_waits_for_are_counted_once() -> None:
    sync = Sync.of(plan_forward(2, 4, 2))
    assert sync.recorded is sync.recorded


def test_a_handler_that_raises_leaves_the_callers_stream_behind_what_was_issued() -> None:
    plan, streams = plan_forward(1, 4, 2), RecordingStreams()

    def handle(step: Step) -> None:
        if step.name == "mlp[0]":
            raise ZeroDivisionError
        streams.handle(step)

    with pytest.raises(ZeroDivisionError):
        StreamExecutor(streams).run(plan, dict.fromkeys(Op, handle))
    streams.inside = None
    assert streams.steps.keys() <= streams.before(streams.record(Lane.COMPUTE))


def test_a_plan_without_handlers_issues_nothing() -> None:
    streams = RecordingStreams()
    with pytest.raises(PlanError, match="no handler"):
        StreamExecutor(streams).run(plan_forward(1, 4), {Op.EMBED: streams.handle})
    assert streams.nodes == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_streams_say_that_there_is_no_cuda() -> None:
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda|nvidia"):
        CudaStreams()


class FakeCuda:
    """As much of torch.cuda as `CudaStreams` calls, with the compute lane's stream and one for each other lane."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def current_device(self) -> int:
        return 0

    def current_stream(self, device: int) -> str:
        return "the caller's"

    def Stream(self, device: int, priority: int) -> str:
        self.made.append(f"stream {len(self.made)} of {device}")
        return self.made[-1]

    def stream(self, stream: str) -> AbstractContextManager[None]:
        return nullcontext()


def test_the_compute_lane_alone_leaves_sms_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    carveout: list[int | None] = [None]
    monkeypatch.setattr(torch, "cuda", FakeCuda())
    monkeypatch.setattr(
        "tokenweave.sm_carveout.torchs_switch", lambda: (lambda: carveout[-1], carveout.append)
    )
    seen: dict[Lane, set[int | None]] = {lane: set() for lane in Lane}
    backend = CudaStreams(sm_carveout=16)
    for lane in Lane:
        with backend.on(backend.stream(lane)):
            seen[lane].add(carveout[-1])
        assert carveout[-1] is None
    assert seen == {lane: {16} if lane is Lane.COMPUTE else {None} for lane in Lane}


class FakeEvent:
    def synchronize(self) -> None:
        raise AssertionError("waits for ever where a rank is gone")


def test_the_host_waits_for_an_event_as_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch, "cuda", FakeCuda())
    event: Any = FakeEvent()
    CudaStreams(wait=waited.append).wait_until(event)
    assert waited == [event]
    with pytest.raises(AssertionError, match="for ever"):
        CudaStreams().wait_until(event)


class Sums:
    """Handlers on a GPU whose result depends on the order: each step reads what the steps before it wrote."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.position = {id(step): at for at, step in enumerate(plan.steps)}
        self.slots = torch.zeros(len(plan.steps), 1 << 20, device="cuda")

    def handle(self, step: Step) -> None:
        own = self.slots[self.position[id(step)]]
        own.fill_(1)
        for _ in range(20):  # long enough that a step that did not wait would read what is not there yet
            own.mul_(1)
        for other in step.waits_for:
            own.add_(self.slots[other])

    def expected(self) -> list[float]:
        values: list[float] = []
        for step in self.plan.steps:
            values.append(1 + sum(values[other] for other in step.waits_for))
        return values

    def found(self) -> list[float]:
        found: list[float] = self.slots.amax(dim=1).tolist()
        assert found == self.slots.amin(dim=1).tolist()
        return found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("split", [None, 4])
def test_on_a_gpu_every_step_sees_what_it_waits_for_also_in_a_captured_graph(split: int | None) -> None:
    plan = plan_forward(2, 8, split)
    sums, executor = Sums(plan), StreamExecutor(CudaStreams())
    handlers: dict[Operation, Any] = dict.fromkeys(Op, sums.handle)
    executor.run(plan, handlers)
    assert sums.found() == sums.expected()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        executor.run(plan, handlers)
    for _ in range(3):
        sums.slots.zero_()
        graph.replay()
        assert sums.found() == sums.expected()
