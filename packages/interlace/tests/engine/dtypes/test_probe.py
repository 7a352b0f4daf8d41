"""The probe runs on every kind of kernels. None of these tests says which dtype is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from interlace.engine.dtypes import probe
from interlace.engine.dtypes.products import Products
from tokenweave.kernels import Kernels, NativeKernels, PackedLinear, ReferenceKernels

SMALL = Products(((96, 64), (64, 48), (160, 64), (64, 80)), layer_weights=300_000, head_weights=60_000)


class Spy(NativeKernels):
    """Notes the products that are asked for."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.calls: list[tuple[int, PackedLinear]] = []

    def linear(self, x: Tensor, packed: PackedLinear, out: Tensor | None = None) -> Tensor:
        y = super().linear(x, packed, out)
        assert bool(torch.isfinite(y).all())
        assert bool(y.any())
        self.calls.append((len(x), packed))
        return y


@pytest.mark.parametrize(
    "kernels",
    [
        pytest.param(lambda: NativeKernels(2), id="native"),
        pytest.param(lambda: NativeKernels(1, "amx-emulated"), id="amx-emulated"),
        pytest.param(ReferenceKernels, id="reference"),
    ],
)
def test_both_dtypes_are_timed(kernels: object) -> None:
    made = kernels()  # type: ignore[operator]
    assert isinstance(made, Kernels)
    found = probe.compare(made, SMALL)
    assert found.products == SMALL
    assert found.slowdown > 0


def test_prompts_and_steps_of_both_dtypes_run_over_the_same_bytes_in_turns() -> None:
    kernels = Spy()
    probe.compare(kernels, SMALL)
    assert {rows for rows, _ in kernels.calls} == {probe.PROMPT_ROWS, 1, probe.BATCH}
    assert {(weight.n, weight.k) for _, weight in kernels.calls} == set(SMALL.matrices)
    turns = [weight.dtype for rows, weight in kernels.calls if rows == probe.PROMPT_ROWS]
    assert turns[:8] == [torch.float32] * 4 + [torch.bfloat16] * 4
    places = {
        dtype: [
            weight.data.data_ptr() for rows, weight in kernels.calls if rows == 1 and weight.dtype is dtype
        ]
        for dtype in probe.DTYPES
    }
    starts = {min(found) for found in places.values()}
    assert len(starts) == 1
    for dtype in probe.DTYPES:
        layer = [weight for _, weight in kernels.calls if weight.dtype is dtype][:4]
        layer_bytes = sum(-(-weight.data.nbytes // 4096) * 4096 for weight in layer)
        assert len(set(places[dtype])) == 4 * (
            720_000 // layer_bytes
        )  # as many layers as the model's bytes hold


def test_large_matrices_are_cut_to_some_outputs_of_all_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROMPT_FLOPS", 0.25 * 2 * 256 * sum(n * k for n, k in SMALL.matrices))
    kernels = Spy()
    probe.compare(kernels, SMALL)
    assert {(weight.n, weight.k) for _, weight in kernels.calls} == {(32, 64), (32, 48), (32, 80)}


def test_no_more_memory_is_filled_than_decoding_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "WEIGHT_BYTES", 400_000)
    kernels = Spy()
    probe.compare(kernels, Products(SMALL.matrices, 10**9, 10**8))
    ends = [weight.data.data_ptr() + weight.data.nbytes for _, weight in kernels.calls]
    assert max(ends) - min(weight.data.data_ptr() for _, weight in kernels.calls) <= 400_000


def timers_of(*times: list[float]) -> tuple[list[Callable[[], float]], list[Iterator[float]]]:
    left = [iter(each) for each in times]
    return [each.__next__ for each in left], left


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Each reading of the clock moves it on by the list's only item, in seconds."""
    step, now = [0.0], [0.0]

    def read() -> float:
        now[0] += step[0]
        return now[0]

    monkeypatch.setattr("interlace.engine.dtypes.probe.time.perf_counter", read)
    return step


def test_rounds_go_on_while_a_time_is_seen_once_only(clock: list[float]) -> None:
    clock[0] = 1.1 * probe.BUDGET_S / 2
    timers, left = timers_of([1.0] * 9, [9.0, 2.0, 8.0, 1.0, 1.05, 0.1])
    assert probe._timed(timers) == [1.0, 1.0]
    assert list(left[1]) == [0.1]


def test_rounds_end_where_nothing_settles(clock: list[float]) -> None:
    falling = [2.0**-turn for turn in range(20)]
    timers, left = timers_of(falling)
    assert probe._timed(timers) == [falling[probe.MOST_ROUNDS - 1]]
    clock[0] = probe.PATIENCE_S
    timers, left = timers_of(falling)
    assert probe._timed(timers) == [falling[1]]
    assert len(list(left[0])) == 18
