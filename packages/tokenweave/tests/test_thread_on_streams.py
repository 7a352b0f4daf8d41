"""Ranks as threads on CUDA: how their streams wait for each other, on tensors that only say that they are there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from support.patience import PATIENCE_S
from support.rank_programs import data_of, expected_sum
from tokenweave.communicators import ThreadCommunicator, thread_group
from tokenweave.kernels import ResidualNorms, make_kernels

SHAPE = (5, 7)
NOTED = frozenset({"clone", "to", "copy_", "add_"})


class Stream:
    """Writes down what is queued on it."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []

    def record_event(self) -> Event:
        event = Event(self)
        self.log.append(("record", event))
        return event

    def wait_event(self, event: Event) -> None:
        self.log.append(("wait", event))

    def of(self, name: str) -> list[Any]:
        return [what for each, what in self.log if each == name]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.log]


class Event:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream


class OnDevice(torch.Tensor):
    """A tensor whose operations go to the current stream."""

    is_cuda = True

    def record_stream(self, stream: Any) -> None:
        stream.log.append(("in use", None))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in NOTED:
            current().log.append((name, None))
        return super().__torch_function__(func, types, args, kwargs or {})


_streams = threading.local()


def current(device: Any = None) -> Stream:
    """The calling thread's current stream."""
    if not hasattr(_streams, "current"):
        _streams.current = Stream()
    found: Stream = _streams.current
    return found


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.current_stream", current)


def on_ranks(size: int, program: Callable[[ThreadCommunicator], Any]) -> list[Any]:
    """Each rank's outcome of `program`."""
    found: dict[int, Any] = {}

    def body(rank: ThreadCommunicator) -> None:
        found[rank.rank] = program(rank)

    threads = [threading.Thread(target=body, args=(rank,)) for rank in thread_group(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    return [found[rank] for rank in range(size)]


def own_tensor(rank: ThreadCommunicator) -> torch.Tensor:
    return data_of(rank.rank, SHAPE, "float32").as_subclass(OnDevice)


def values(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(torch.Tensor)


@pytest.mark.usefixtures("streams")
def test_a_sum_is_queued_behind_the_copies_of_all_ranks() -> None:
    def all_reduce(rank: ThreadCommunicator) -> tuple[torch.Tensor, Stream]:
        tensor = own_tensor(rank)
        rank.all_reduce(tensor)
        return tensor, current()

    outcomes = on_ranks(3, all_reduce)
    copies = {event for _, stream in outcomes for event in stream.of("record")}
    assert len(copies) == 3
    for total, stream in outcomes:
        assert torch.equal(values(total), expected_sum(3, SHAPE, "float32"))
        reads = ["wait", "in use", "to"] * 3
        assert stream.names == ["clone", "record", *reads, "to", "add_", "add_", "copy_"]
        assert set(stream.of("wait")) == copies


@pytest.mark.usefixtures("streams")
def test_a_call_is_queued_on_the_stream_that_is_current() -> None:
    """A lane of the stream executor is a stream, and one thread issues to all of them."""

    def on_two_lanes(rank: ThreadCommunicator) -> tuple[Stream, Stream]:
        compute, transfer = current(), Stream()
        tensor = own_tensor(rank)
        _streams.current = transfer
        rank.all_gather(tensor)
        _streams.current = compute
        return compute, transfer

    (compute, transfer), (_, other) = on_ranks(2, on_two_lanes)
    assert not compute.log
    assert [event.stream for event in transfer.of("wait")] == [transfer, other]


@pytest.mark.usefixtures("streams")
def test_of_a_broadcast_the_root_alone_gives_a_copy() -> None:
    def broadcast(rank: ThreadCommunicator) -> tuple[torch.Tensor, list[str]]:
        tensor = own_tensor(rank)
        rank.broadcast(tensor, root=1)
        return tensor, current().names

    outcomes = on_ranks(2, broadcast)
    for got, _ in outcomes:
        assert torch.equal(values(got), data_of(1, SHAPE, "float32"))
    assert [names.count("clone") for _, names in outcomes] == [0, 1]


SLEEP_CYCLES = 100_000_000  # some 50 ms, by which a rank's stream is behind its host


@pytest.fixture
def devices() -> Iterator[list[torch.device]]:
    """A device for each of two ranks: the same where there is one."""
    yield [torch.device("cuda", rank % torch.cuda.device_count()) for rank in range(2)]
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("slow_rank", [0, 1])
def test_ranks_on_gpus_read_what_a_late_stream_writes(devices: list[torch.device], slow_rank: int) -> None:
    """The memory of the copies is asked for again and again meanwhile, so that one that is given away early shows."""

    def reduce_often(rank: ThreadCommunicator) -> list[torch.Tensor]:
        device = devices[rank.rank]
        rank.kernels = make_kernels("reference", device=device)
        norms, totals = ResidualNorms(torch.ones(4096, device=device), 1e-5), []
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            for turn in range(8):
                if rank.rank == slow_rank:
                    torch.cuda._sleep(SLEEP_CYCLES)
                partial = torch.full((256, 4096), float(turn + rank.rank), device=device)
                residual = rank.new_residual(256, 4096, torch.float32)
                rank.all_reduce_rms_norm(partial, residual, norms)
                totals.append(residual)
                gathered = rank.gather_columns(partial, [4096, 4096])
                assert (gathered is None) is (rank.rank == 1)
            rank.wait_for(torch.cuda.current_stream(device).record_event())
        return [total.cpu() for total in totals]

    for totals in on_ranks(2, reduce_often):
        for turn, total in enumerate(totals):
            assert torch.equal(total, torch.full((256, 4096), 2.0 * turn + 1.0))
