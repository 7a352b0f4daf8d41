"""Waits for a device: each ends, though the device may wait for a rank that is gone. Events and groups are fakes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist

from support.patience import PATIENCE_S
from support.rank_groups import MakeRanks, free_port
from tokenweave.communicators import NullCommunicator, TorchCommunicator
from tokenweave.communicators.device_group import DeviceGroup
from tokenweave.communicators.device_wait import happens, within
from tokenweave.errors import CommunicatorTimeout, RankError
from tokenweave.sampling.device.copies import Returning

CPU = torch.device("cpu")


class Event:
    """Happens once it has been asked for so many times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def query(self) -> bool:
        self.times -= 1
        return self.times <= 0


def never() -> Event:
    return Event(10**9)


def test_a_wait_ends_when_its_event_happens_and_looks_around_meanwhile() -> None:
    looks: list[int] = []
    assert happens(Event(20), PATIENCE_S, lambda: looks.append(1), slice_s=0)
    assert 0 < len(looks) < 20
    assert happens(Event(1), PATIENCE_S, lambda: pytest.fail("nobody is waited for"), slice_s=0)


def test_a_wait_ends_when_its_time_is_over_or_when_the_look_raises() -> None:
    assert not happens(never(), 0.01, lambda: None, slice_s=0)

    def look() -> None:
        raise RankError("rank 1 is gone", 1)

    with pytest.raises(RankError, match="rank 1 is gone"):
        happens(never(), PATIENCE_S, look, slice_s=0)


def test_a_rank_alone_waits_for_its_device_no_longer_than_for_another() -> None:
    alone = NullCommunicator(timeout_s=0.05)
    with pytest.raises(CommunicatorTimeout, match=r"rank 0 waited 0\.05 s for its device"):
        alone.wait_for(never())
    alone = NullCommunicator()
    alone.wait_for(Event(5))
    alone.abort("no memory")
    with pytest.raises(RankError, match="no memory"):
        alone.wait_for(never())


@pytest.mark.parametrize("kind", ["thread", "torch", "linked-thread", "symm_mem"])
def test_an_abort_ends_a_wait_for_a_device(make: MakeRanks, kind: str) -> None:
    """Rank 0 waits so for its token ids when whoever started the ranks says that one has died."""
    ranks = make(kind, 2)
    finish = ranks.start("wait_for_a_device_that_hangs", ranks=[0])
    ranks.run("abort", "no memory", ranks=[1])
    for outcome in [*finish(), *ranks.run("barrier", ranks=[0])]:
        assert isinstance(outcome, RankError)
        assert (outcome.rank, str(outcome)) == (1, "rank 1 aborted the job: no memory")


def test_a_wait_for_a_device_that_takes_too_long_ends_the_group(make: MakeRanks) -> None:
    ranks = make("thread", 2, timeout_s=0.05)
    (outcome,) = ranks.run("wait_for_a_device_that_hangs", ranks=[0])
    assert isinstance(outcome, CommunicatorTimeout)
    assert str(outcome).startswith("rank 0 waited 0.05 s for its device; raise timeout_s")
    (outcome,) = ranks.run("barrier", ranks=[1])
    assert isinstance(outcome, RankError)


@pytest.mark.slow
def test_over_torch_the_rank_that_does_not_answer_is_named(make: MakeRanks) -> None:
    ranks = make("torch", 3, timeout_s=5.0)
    finish = ranks.start("wait_for_command", ranks=[1])  # rank 2 does nothing: it may hang
    (outcome,) = ranks.run("wait_for_a_device_that_hangs", ranks=[0])
    assert isinstance(outcome, CommunicatorTimeout)
    assert "rank 0 waited 5 s for its device, and rank 2 did not answer" in str(outcome)
    (told,) = finish()
    assert isinstance(told, RankError)
    assert told.rank == 2


def test_a_call_that_may_hang_is_left_behind_when_its_time_is_over() -> None:
    is_over = threading.Event()
    assert not within(0.01, is_over.wait)
    is_over.set()
    assert within(PATIENCE_S, is_over.wait)
    with pytest.raises(ZeroDivisionError):
        within(PATIENCE_S, lambda: 1 // 0)


def test_whoever_watches_may_end_the_wait_for_a_call() -> None:
    def watch() -> None:
        raise RankError("rank 1 was killed by SIGKILL", 1)

    is_over = threading.Event()
    with pytest.raises(RankError, match="SIGKILL"):
        within(PATIENCE_S, is_over.wait, watch)
    is_over.set()


class Nccl:
    """A backend that says that it is nccl."""

    def __init__(self) -> None:
        self.is_aborted = threading.Event()

    def name(self) -> str:
        return "nccl"

    def abort(self) -> None:
        self.is_aborted.set()


class Group:
    """A group over `backend` whose calls do `call`."""

    def __init__(self, backend: Any, call: Any) -> None:
        self._backend, self._call = backend, call

    def _get_backend(self, device: torch.device) -> Any:
        if self._backend is None:
            raise RuntimeError(f"no backend for {device}")
        return self._backend

    def allreduce(self, tensors: list[torch.Tensor]) -> Any:
        self._call()
        return self

    def wait(self) -> None: ...


class Waits:
    name = "rank 0"

    def fail_as_lost(self, call: str, cause: RuntimeError) -> None:
        raise RankError(f"{call}: {cause}", 1)


def device_group(backend: Any, call: Any = lambda: None) -> Any:
    waits: Any = Waits()
    return DeviceGroup(Group(backend, call), waits)


def test_what_nccl_has_queued_is_ended_and_other_backends_are_left_alone() -> None:
    nccl = Nccl()
    assert device_group(nccl).is_nccl
    device_group(nccl).end()
    assert nccl.is_aborted.is_set()
    assert not device_group(None).is_nccl
    device_group(None).end()


def test_ranks_meet_over_nccl_within_a_bounded_time() -> None:
    nccl = Nccl()
    device_group(nccl).meet(CPU, PATIENCE_S)
    with pytest.raises(
        CommunicatorTimeout, match=r"rank 0 could not meet the others over nccl within 0.01 s"
    ):
        device_group(nccl, nccl.is_aborted.wait).meet(CPU, 0.01)
    nccl.abort()


def test_a_group_that_nccl_cannot_connect_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def meet(self: DeviceGroup, *_: Any) -> None:
        raise RankError("the first call: rank 1 is gone", 1)

    monkeypatch.setattr(DeviceGroup, "is_nccl", True)
    monkeypatch.setattr(DeviceGroup, "meet", meet)
    with pytest.raises(RankError, match="the first call: rank 1 is gone"):
        TorchCommunicator.connect(0, 1, "127.0.0.1", free_port())
    assert not dist.is_initialized()


def raising(error: Exception) -> Any:
    def call() -> None:
        raise error

    return call


def test_an_error_of_the_group_names_a_rank_and_any_other_stays_what_it_is() -> None:
    for error in (
        dist.DistBackendError("NCCL communicator was aborted"),
        RuntimeError("[gloo/tcp/pair.cc] closed"),
    ):
        with pytest.raises(RankError, match="all_reduce: "):
            device_group(Nccl(), raising(error)).all_reduce(torch.ones(1), "all_reduce")
    with pytest.raises(RuntimeError, match="out of memory"):
        device_group(Nccl(), raising(RuntimeError("out of memory"))).all_reduce(torch.ones(1), "all_reduce")


def test_token_ids_are_waited_for_by_who_knows_whether_somebody_is_gone() -> None:
    returning: Any = Returning(torch.arange(3))
    returning._copied = never()
    asked: list[Any] = []
    assert returning.wait(asked.append).tolist() == [0, 1, 2]
    assert asked == [returning._copied]
