"""The torch communicator's calls on CUDA tensors, which only say that they are, of a group that is a fake."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from support.rank_groups import MakeRanks
from support.rank_programs import expected_sum
from tokenweave.communicators import TorchCommunicator
from tokenweave.communicators.device_group import DeviceGroup
from tokenweave.communicators.kept_tensors import KEPT_CALLS, KeptTensors
from tokenweave.kernels import ResidualNorms


class OnDevice(torch.Tensor):
    is_cuda = True


class FakeWork:
    def __init__(self, waits: list[tuple[Any, ...]]) -> None:
        self._waits = waits

    def wait(self, *timeout: Any) -> None:
        self._waits.append(timeout)


class FakeGroup:
    """Notes how its work was waited for; of two ranks that have the same tensors."""

    def __init__(self) -> None:
        self.waits: list[tuple[Any, ...]] = []

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> FakeWork:
        return FakeWork(self.waits)

    def allreduce(self, tensors: list[torch.Tensor]) -> FakeWork:
        return FakeWork(self.waits)

    def _allgather_base(self, gathered: torch.Tensor, tensor: torch.Tensor) -> FakeWork:
        gathered.copy_(torch.cat([tensor, tensor]))
        return FakeWork(self.waits)


class FakeWaits:
    failure = None
    step = 0


@pytest.fixture
def comm() -> TorchCommunicator:
    made: Any = object.__new__(TorchCommunicator)
    made.rank, made.size, made.timeout_s = 0, 2, 1.0
    made._data, made._waits, made._kept = FakeGroup(), FakeWaits(), KeptTensors()
    made._device_group = DeviceGroup(made._data, made._waits)
    made._check_calls = made._closed = False
    made._kernels = None
    found: TorchCommunicator = made
    return found


def on_device(*shape: int) -> torch.Tensor:
    return torch.ones(shape).as_subclass(OnDevice)


def test_the_host_waits_for_no_cuda_tensor(comm: Any) -> None:
    """A wait with a timeout would be one of the host, and nccl ends the group when it has passed."""
    comm.broadcast(on_device(4))
    comm.all_reduce(on_device(4))
    comm.all_gather(on_device(4))
    assert comm._data.waits == [()] * 3


def test_what_calls_on_streams_take_and_give_outlives_them_by_some_calls(comm: Any) -> None:
    """The handlers of a plan drop a tensor when the step that reads it is issued, not when it is done."""

    def gather() -> list[weakref.ref[torch.Tensor]]:
        own = on_device(3, 2)
        joined = comm.gather_columns(own, [2, 2])
        assert joined.shape == (3, 4)
        return [weakref.ref(own), weakref.ref(joined)]

    def reduce() -> list[weakref.ref[torch.Tensor]]:
        hidden, residual = on_device(1, 8), on_device(1, 8)
        normed = comm.all_reduce_rms_norm(hidden, residual, ResidualNorms(torch.ones(8), 1e-5))
        return [weakref.ref(hidden), weakref.ref(residual), weakref.ref(normed)]

    calls = [gather(), reduce()]
    for _ in range(KEPT_CALLS - 2):
        comm.all_gather(on_device(1))
    gc.collect()
    assert all(ref() is not None for refs in calls for ref in refs)
    comm.all_gather(on_device(1))
    gc.collect()
    assert [[ref() is None for ref in refs] for refs in calls] == [[True] * 2, [False] * 3]


def test_tensors_of_the_host_are_let_go_at_once() -> None:
    kept, tensor = KeptTensors(), torch.ones(1)
    kept.keep(tensor)
    gone = weakref.ref(tensor)
    del tensor
    assert gone() is None


@pytest.mark.parametrize("size", [2, 3])
def test_in_a_group_for_cuda_alone_cpu_tensors_go_over_the_control_group(make: MakeRanks, size: int) -> None:
    """As in one of "nccl", which takes no CPU tensor: here gloo is registered for CUDA's alone."""
    ranks = make("torch", size, backend="cuda:gloo")
    shapes = [(7,), (331, 577)]  # the second in two steps, from three ranks on
    for got in ranks.run("sequence", [("all_reduce", shape, "float32") for shape in shapes]):
        for one, shape in zip(got, shapes, strict=True):
            assert torch.equal(one, expected_sum(size, shape, "float32"))
    assert all(outcome is None for outcome in ranks.run("barrier"))


def test_a_group_for_cuda_alone_can_have_symmetric_memory(make: MakeRanks) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    ranks = make("symm_mem", 2, backend="cuda:gloo")
    assert ranks.run("symm_programs.fused_once", 5) == [None] * 2
