"""Woven captures: lanes that replay their own calls, wait for each other, and end together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from support.patience import PATIENCE_S
from tokenweave.errors import CommunicatorTimeout, KernelError
from tokenweave.execute import Handler, run_sequential
from tokenweave.kernels import NativeKernels, ResidualNorms
from tokenweave.lanes import LaneExecutor
from tokenweave.ops import Lane
from tokenweave.plan import Op, Operation, Step, plan_forward
from tokenweave.replay.capture import Recorded, WovenCapture, capture
from tokenweave.replay.memory import PassMemory
from tokenweave.replay.progress import Progress
from tokenweave.replay.records import CallSites

LAYERS, ROWS, SPLIT, WIDTH = 3, 5, 2, 64
PLAN = plan_forward(LAYERS, ROWS, SPLIT)
CAPTURED = {Op.EMBED, Op.ATTENTION, Op.MLP, Op.REDUCE_NORM}


class Model:
    """Two parts of rows; each lane has kernels of its own, as in the engine. `exchange` is a transfer in Python."""

    def __init__(self) -> None:
        self.kernels, self.transfers = NativeKernels(), NativeKernels()
        generator = torch.Generator().manual_seed(0)
        self.weight = self.kernels.pack(torch.randn(2 * WIDTH, WIDTH, generator=generator) / 8)
        self.norms = ResidualNorms(torch.ones(WIDTH), 1e-5)
        self.ids = [torch.zeros(len(rows), dtype=torch.int32) for rows in PLAN.parts]
        self.rows: list[Tensor] = [torch.empty(0)] * 2
        self.residuals: list[Tensor] = [torch.empty(0)] * 2
        self.out: list[Tensor] = [torch.empty(0)] * 2
        self.num_exchanged = 0
        self.failure: Exception | None = None
        self.before_exchange: Callable[[], object] = lambda: None

    def exchange(self, rows: Tensor) -> None:
        self.before_exchange()
        if self.failure is not None:
            raise self.failure
        rows += 1.0
        self.num_exchanged += 1

    def embed(self, step: Step) -> None:
        assert step.part is not None
        rows = self.kernels.gather_rows(self.weight, self.ids[step.part])
        self.rows[step.part] = rows
        self.residuals[step.part] = torch.zeros_like(rows)

    def compute(self, step: Step) -> None:
        assert step.part is not None
        self.rows[step.part] = self.kernels.silu_and_mul(
            self.kernels.linear(self.rows[step.part], self.weight)
        )

    def transfer(self, step: Step) -> None:
        assert step.part is not None
        rows = self.rows[step.part]
        self.exchange(rows)
        self.rows[step.part] = self.transfers.add_rms_norm(rows, self.residuals[step.part], self.norms)

    def output(self, step: Step) -> None:
        assert step.part is not None
        self.out[step.part] = self.rows[step.part].softmax(-1)

    def gather(self, step: Step) -> None:
        self.joined = torch.cat(self.out)

    @property
    def handlers(self) -> dict[Operation, Handler]:
        return {
            Op.EMBED: self.embed, Op.ATTENTION: self.compute, Op.MLP: self.compute,
            Op.REDUCE_NORM: self.transfer, Op.LOGITS: self.output, Op.GATHER: self.gather,
        }  # fmt: skip

    @property
    def rest(self) -> dict[Operation, Handler]:
        return {Op.LOGITS: self.output, Op.GATHER: self.gather}

    def record(self) -> Recorded:
        sites = CallSites((self.kernels.pool, self.transfers.pool), ((self, "exchange"),))
        recorded = capture(PLAN, self.handlers, CAPTURED, sites, PassMemory())
        assert isinstance(recorded, Recorded), recorded
        return recorded

    def read(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for ids in self.ids:
            ids.copy_(torch.randint(0, 2 * WIDTH, ids.shape, generator=generator))


@pytest.fixture
def executor() -> Iterator[LaneExecutor]:
    with LaneExecutor(torch.inference_mode) as executor:
        yield executor


def woven(model: Model, executor: LaneExecutor, timeout_s: float = PATIENCE_S) -> WovenCapture:
    return WovenCapture(model.record(), executor, Progress(timeout_s))


def test_lanes_replay_with_the_bits_of_an_ordinary_pass_on_new_inputs(executor: LaneExecutor) -> None:
    model, plain = Model(), Model()
    calls = woven(model, executor)
    for seed in range(30):
        for each in (model, plain):
            each.read(seed)
        calls.run(None, model.rest)
        run_sequential(PLAN, plain.handlers)
        assert torch.equal(model.joined, plain.joined)
        assert all(map(torch.equal, model.residuals, plain.residuals))


def test_what_python_exchanges_is_exchanged_in_every_run(executor: LaneExecutor) -> None:
    model = Model()
    calls = woven(model, executor)
    in_a_pass = model.num_exchanged
    assert in_a_pass == 2 * (2 * LAYERS + 1)
    calls.run()
    calls.run()
    assert model.num_exchanged == 3 * in_a_pass
    assert "exchange" not in vars(model)  # the recorder has left no trace


def test_every_step_is_told_once_with_times_that_follow_its_edges(executor: LaneExecutor) -> None:
    model = Model()
    seen: dict[Step, tuple[float, float]] = {}
    woven(model, executor).run(lambda step, start, end: seen.update({step: (start, end)}), model.rest)
    assert set(seen) == set(PLAN.steps)
    for step in PLAN.steps:
        start, end = seen[step]
        assert start <= end
        assert all(seen[PLAN.steps[place]][1] <= start for place in step.waits_for)


def fail_at(calls: WovenCapture, lane: Lane, name: str, word: int) -> None:
    """Makes the last call of `name` in a lane's list one that its function refuses."""
    [*_, place] = [
        at for at, call in enumerate(calls._lists[lane]._calls) if getattr(call, "name", "") == name
    ]
    calls._lists[lane]._records[place].words[word] = 2**64 - 1  # -1 rows


@pytest.mark.parametrize(
    ("lane", "name", "word"), [(Lane.COMPUTE, "tw_linear", 8), (Lane.TRANSFER, "tw_rms_norm", 8)]
)
def test_a_call_that_fails_in_one_lane_ends_both(lane: Lane, name: str, word: int) -> None:
    model, told = Model(), list[BaseException]()
    with LaneExecutor(torch.inference_mode, on_failure=told.append) as executor:
        calls = woven(model, executor)
        fail_at(calls, lane, name, word)
        with pytest.raises(KernelError, match=f"{name.removeprefix('tw_')}: invalid argument"):
            calls.run(None, model.rest)
        assert [type(failure) for failure in told] == [KernelError]
        assert not hasattr(model, "joined")


def test_an_error_of_python_in_a_transfer_comes_through_and_the_next_run_works(
    executor: LaneExecutor,
) -> None:
    model = Model()
    calls = woven(model, executor)
    model.failure = ArithmeticError("so")
    with pytest.raises(ArithmeticError, match="so"):
        calls.run(None, model.rest)
    assert not hasattr(model, "joined")
    model.failure = None
    calls.run(None, model.rest)
    run_sequential(PLAN, (plain := Model()).handlers)
    assert torch.equal(model.joined, plain.joined)


def test_a_wait_for_a_lane_that_is_stuck_ends_and_says_what_it_waited_for() -> None:
    model, stuck = Model(), threading.Event()
    with LaneExecutor(torch.inference_mode, on_failure=lambda failure: stuck.set()) as executor:
        calls = woven(model, executor, timeout_s=0.05)
        model.before_exchange = lambda: stuck.wait(PATIENCE_S)
        with pytest.raises(CommunicatorTimeout, match=r"compute lane waited 0\.05 s in .* for reduce_norm\["):
            calls.run()
        model.before_exchange = lambda: None
        calls.run()  # the next run has nothing of it


def test_parts_share_no_memory_of_a_pass() -> None:
    """They run at the same time, so what one has let go of may not go to the other."""
    memory = PassMemory()
    memory.begin()
    spans = []
    for part in (0, 1, 0, 1):
        memory.go_on_with(part)
        tensor = memory.like(torch.empty(1000))
        spans.append((part, tensor.data_ptr()))
        del tensor
    assert spans[0] == spans[2]
    assert spans[1] == spans[3]
    assert spans[0][1] != spans[1][1]
