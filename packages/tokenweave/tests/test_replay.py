"""Capture and replay: the same bits on new inputs, and no capture of what native calls do not make."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.execute import Handler
from tokenweave.kernels import NativeKernels, ResidualNorms
from tokenweave.plan import Op, Operation, Plan, Step
from tokenweave.replay.capture import Capture, Recorded, Refusal, capture
from tokenweave.replay.memory import PassMemory
from tokenweave.replay.records import CallSites

ROWS, WIDTH = 3, 64
PLAN = Plan(ROWS, (Step(Op.EMBED), Step(Op.MLP, (0,), 0), Step(Op.LOGITS, (1,))))
DTYPES = [torch.float32, torch.bfloat16]


class Model:
    """Steps whose work is native, in the ways of the decoder; `between` runs in the second of them."""

    def __init__(self, dtype: torch.dtype, between: Callable[[Tensor], Tensor] = lambda rows: rows) -> None:
        self.kernels = NativeKernels()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(2 * WIDTH, WIDTH, generator=generator).to(dtype) / 8
        self.weight = self.kernels.pack(weight)
        self.gate, self.up = (self.kernels.pack(half) for half in weight.chunk(2))
        self.norms = ResidualNorms(torch.ones(WIDTH, dtype=dtype), 1e-5)
        self.ids = torch.zeros(ROWS, dtype=torch.int32)
        self._between = between

    def embed(self, step: Step) -> None:
        rows = self.kernels.gather_rows(self.weight, self.ids)
        self.rows = torch.empty_like(rows).copy_(rows)
        self.rows *= 1.7
        self.residual = torch.zeros_like(self.rows, dtype=torch.float32)

    def mlp(self, step: Step) -> None:
        normed = self.kernels.add_rms_norm(self.rows, self.residual, self.norms)
        self.rows = self._between(self.kernels.gated_linear(normed, self.gate, self.up))

    def logits(self, step: Step) -> None:
        self.out = self.rows.float().softmax(-1)

    @property
    def handlers(self) -> dict[Operation, Handler]:
        return {Op.EMBED: self.embed, Op.MLP: self.mlp, Op.LOGITS: self.logits}

    def capture(self, memory: PassMemory | None = None) -> Capture | Refusal:
        ops, sites = {Op.EMBED, Op.MLP}, CallSites(native=(self.kernels.pool,))
        recorded = capture(PLAN, self.handlers, ops, sites, memory or PassMemory())
        return Capture(recorded) if isinstance(recorded, Recorded) else recorded


def captured(model: Model) -> Capture:
    made = model.capture()
    assert isinstance(made, Capture), made
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@given(ids=st.lists(st.integers(0, 2 * WIDTH - 1), min_size=ROWS, max_size=ROWS))
def test_a_replay_gives_the_bits_of_an_ordinary_pass_on_new_inputs(
    dtype: torch.dtype, ids: list[int]
) -> None:
    model, plain = Model(dtype), Model(dtype)
    calls = captured(model)
    for each in (model, plain):
        each.ids.copy_(torch.tensor(ids))
    model.rows.fill_(7.0)
    calls.run()
    for step in PLAN.steps[:2]:
        plain.handlers[step.op](step)
    assert torch.equal(model.rows, plain.rows)
    assert torch.equal(model.residual, plain.residual)


def test_the_steps_behind_the_captured_ones_have_not_run() -> None:
    model = Model(torch.float32)
    assert captured(model).steps == PLAN.steps[:2]
    assert not hasattr(model, "out")


@pytest.mark.parametrize(
    ("between", "named"),
    [
        (lambda rows: rows.softmax(-1), "softmax"),
        (lambda rows: rows[torch.tensor([2, 0])], "aten"),
        (lambda rows: rows * 2.0, "aten.mul"),
        (lambda rows: torch.empty_like(rows).copy_(torch.zeros(1)), "aten.copy_"),
    ],
)
def test_an_operation_of_torch_in_between_refuses_the_capture(
    between: Callable[[Tensor], Tensor], named: str
) -> None:
    model = Model(torch.float32, between)
    plain = Model(torch.float32, between)
    refused = model.capture()
    for step in PLAN.steps[:2]:
        plain.handlers[step.op](step)
    assert isinstance(refused, Refusal)
    assert named in refused.reason
    assert torch.equal(model.rows, plain.rows)  # they have run all the same


def test_a_native_function_that_cannot_be_replayed_refuses_the_capture() -> None:
    model = Model(torch.float32)

    def between(rows: Tensor) -> Tensor:
        model.kernels.pack(rows)
        return rows

    model._between = between
    refused = model.capture()
    assert refused == Refusal("tw_packed_size_bytes cannot be replayed")


def test_views_and_reshapes_are_captured() -> None:
    model = Model(torch.float32, lambda rows: rows.view(-1, WIDTH)[1:])
    calls = captured(model)
    before = model.rows.clone()
    model.ids.fill_(5)
    calls.run()
    assert not torch.equal(model.rows, before)


def test_a_call_that_fails_raises_its_error_and_ends_the_replay() -> None:
    model = Model(torch.float32)
    calls = captured(model)
    kept = model.rows.clone()
    failing = calls._list._records[calls.num_calls - 1]
    failing.words[9] = 2**64 - 1  # -1 rows
    model.ids.fill_(5)
    with pytest.raises(KernelError, match="invalid argument"):
        calls.run()
    assert torch.equal(model.rows, kept)


def test_an_error_in_a_capture_comes_through_and_leaves_the_kernels_as_they_were() -> None:
    def fail(rows: Tensor) -> Tensor:
        raise ArithmeticError("so")

    model = Model(torch.float32, fail)
    library = model.kernels.pool.library
    with pytest.raises(ArithmeticError, match="so"):
        model.capture()
    assert model.kernels.pool.library is library


def test_an_observer_is_told_of_each_step_in_order() -> None:
    seen: list[tuple[str, float, float]] = []
    captured(Model(torch.float32)).run(lambda step, start, end: seen.append((step.name, start, end)))
    assert [name for name, _, _ in seen] == ["embed", "mlp[0]"]
    times = [time for _, start, end in seen for time in (start, end)]
    assert times == sorted(times)


def test_captures_share_one_memory() -> None:
    memory = PassMemory()
    models = [Model(torch.float32) for _ in range(4)]
    first = models[0].capture(memory)
    size_bytes = memory.size_bytes
    assert isinstance(first, Capture)
    assert [type(model.capture(memory)) for model in models[1:]] == [Capture] * 3
    assert memory.size_bytes == size_bytes
    models[0].ids.fill_(9)
    first.run()
    models[1].ids.fill_(9)
    expected = models[0].rows.clone()
    again = models[1].capture(memory)
    assert isinstance(again, Capture)
    assert torch.equal(models[1].rows, expected)


@settings(max_examples=40)
@given(data=st.data())
def test_tensors_of_a_pass_do_not_overlap_while_they_live(data: st.DataObject) -> None:
    memory = PassMemory()
    memory.begin()
    alive: dict[int, Tensor] = {}
    for number in range(data.draw(st.integers(1, 40))):
        if alive and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(alive)))
            assert (alive[gone] == gone).all()
            del alive[gone]
        else:
            shape = (data.draw(st.integers(0, 300)), data.draw(st.integers(1, 300)))
            tensor = memory.like(torch.empty(shape))
            assert tensor.shape == shape
            alive[number] = tensor.fill_(number)
    for number, tensor in alive.items():
        assert (tensor == number).all()
    alive.clear()
    del tensor
    assert memory.free_bytes == memory.size_bytes
