"""Graphs: what torch.cuda is told when one is captured, what the fake of them notices, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from support.fake_graphs import FakeGraphs
from tokenweave.communicators import NullCommunicator, TorchCommunicator, thread_group
from tokenweave.errors import GraphError
from tokenweave.graphs import CudaGraphs
from tokenweave.plan import Op, Step, plan_forward
from tokenweave.streams import CudaStreams, StreamExecutor

DEVICE = torch.device("cuda", 0)


class FakeStream(str):
    """A stream that writes down what it waits for."""

    told: list[str]

    def wait_stream(self, other: FakeStream) -> None:
        self.told.append(f"{self} waits for {other}")


class FakeCuda:
    """As much of torch.cuda as `CudaGraphs` calls. As in torch, the stream of an invalid capture stays current."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.current = self._named("caller")
        self.is_invalid = False

    def _named(self, name: str) -> FakeStream:
        stream = FakeStream(name)
        stream.told = self.told
        return stream

    def Stream(self, device: torch.device) -> FakeStream:
        return self._named("side")

    def current_stream(self) -> FakeStream:
        return self.current

    def graph_pool_handle(self) -> str:
        return "pool"

    def CUDAGraph(self) -> FakeCuda:
        return self

    def replay(self) -> None:
        self.told.append(f"replay on {self.current}")

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        assert device == DEVICE
        yield

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: object, pool: str, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        self.told.append(f"begin with {pool}, errors {capture_error_mode}")
        before, self.current = self.current, stream
        yield
        self.told.append("end")
        if self.is_invalid:
            raise RuntimeError("operation not permitted when stream is capturing\nFor debugging consider")
        self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    return fake


def test_work_runs_once_and_is_then_captured_in_the_pool_of_all_graphs(cuda: FakeCuda) -> None:
    graphs = CudaGraphs(DEVICE)
    for _ in range(2):
        cuda.told.clear()
        graph = graphs.capture(lambda: cuda.told.append(f"work on {cuda.current}"))
        assert cuda.told == [
            "side waits for caller",
            "work on side",
            "caller waits for side",
            "begin with pool, errors thread_local",
            "work on side",
            "end",
        ]
        assert cuda.current == "caller"
    graph.replay()
    assert cuda.told[-1] == "replay on caller"


def test_work_that_cannot_be_captured_says_why_and_leaves_the_callers_stream(cuda: FakeCuda) -> None:
    cuda.is_invalid = True
    with pytest.raises(GraphError, match=r"cannot be captured: operation not permitted .* is capturing$"):
        CudaGraphs(DEVICE).capture(lambda: None)
    assert cuda.current == "caller"


def test_memory_that_a_graph_lacks_is_named(cuda: FakeCuda) -> None:
    calls = iter([lambda: None, exhausted])
    with pytest.raises(GraphError, match=r"no memory left for a graph: tried to allocate 2 GiB$"):
        CudaGraphs(DEVICE).capture(lambda: next(calls)())


def exhausted() -> None:
    raise torch.OutOfMemoryError("tried to allocate 2 GiB\nsee the documentation")


@pytest.mark.parametrize("graphs", [FakeGraphs, lambda: CudaGraphs(DEVICE)], ids=["fake", "cuda"])
def test_what_the_work_raises_itself_is_raised(
    graphs: Callable[[], FakeGraphs | CudaGraphs], cuda: FakeCuda
) -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        graphs().capture(work)
    assert cuda.current == "caller"


FOUND = torch.tensor([3, 0, 2])


@pytest.mark.parametrize(
    "work",
    [
        lambda: FOUND[0].item(),
        lambda: bool(FOUND[0] == 0),
        lambda: FOUND[FOUND > 0],
        lambda: FOUND.nonzero(),
        lambda: FOUND + torch.tensor([1, 2, 3]),
        lambda: torch.where(FOUND > 0),
    ],
)
def test_the_fake_notices_what_waits_or_brings_numbers(work: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match="in a capture the host"):
        FakeGraphs().capture(work)


def test_the_fake_notices_memory_of_another_device() -> None:
    there = torch.empty(3, device="meta")
    FakeGraphs("meta").capture(lambda: there.mul_(2))
    for work in (lambda: there.copy_(FOUND), lambda: torch.empty(3)):
        with pytest.raises(AssertionError, match="has tensors on"):
            FakeGraphs("meta").capture(work)


def test_a_fake_replay_does_the_work_again_and_notices_another() -> None:
    total, sizes = torch.zeros(2), [1]
    graphs = FakeGraphs()
    graph = graphs.capture(lambda: total.add_(torch.ones(sizes[0])))
    graph.replay()
    assert torch.equal(total, torch.full([2], 3.0))
    assert graphs.num_replays == 1
    sizes[0] = 2
    with pytest.raises(AssertionError, match="other work than was captured"):
        graph.replay()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("split", [None, 4])
def test_on_a_gpu_woven_plans_are_replayed_from_one_pool(split: int | None) -> None:
    """Each step's tensor is new in each run; two graphs take the same memory for theirs, one after the other."""
    device = torch.device("cuda", torch.cuda.current_device())
    graphs, executor = CudaGraphs(device), StreamExecutor(CudaStreams(device))

    def captured(layers: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
        plan = plan_forward(layers, 8, split)
        base, out = torch.zeros(1 << 16, device=device), torch.zeros(len(plan.steps), device=device)

        def work() -> None:
            values: dict[int, torch.Tensor] = {}  # kept until the run ends, as streams need

            def handle(step: Step) -> None:
                value = base + 1
                for other in step.waits_for:
                    value = value + values[other]
                values[len(values)] = value

            executor.run(plan, dict.fromkeys(Op, handle))
            out.copy_(torch.stack([value.amax() for value in values.values()]))

        return graphs.capture(work), base, out

    made = [captured(layers) for layers in (2, 1)]
    expected = []
    for _, base, out in made:
        assert out[0] == 1
        expected.append(out.clone())
        base.fill_(1)
    for _ in range(2):
        for (graph, _, out), before in zip(made, expected, strict=True):
            out.zero_()
            graph.replay()
            assert torch.equal(out, 2 * before)


class GroupOf:
    """A group of torch.distributed whose calls on CUDA tensors are those of `backend`; None: there are none."""

    def __init__(self, backend: str | None) -> None:
        self._backend = backend

    def _get_backend(self, device: torch.device) -> GroupOf:
        if device.type != "cuda" or self._backend is None:
            raise RuntimeError("no backend")
        return self

    def name(self) -> str:
        assert self._backend is not None
        return self._backend


def test_communicators_say_whether_a_graph_can_hold_their_calls() -> None:
    assert NullCommunicator().no_graph_reason is None
    assert thread_group(2)[0].no_graph_reason == "the ranks of communicator 'thread' meet on the host"
    for backend, is_queued in (("nccl", True), ("gloo", False), (None, False)):
        comm: Any = object.__new__(TorchCommunicator)
        comm._data = GroupOf(backend)
        assert (comm.no_graph_reason is None) == is_queued
