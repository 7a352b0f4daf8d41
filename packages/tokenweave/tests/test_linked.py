"""LinkedCommunicator: how long exchanges take over a modelled link. Times have lower bounds: machines may be slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from emucxl.links import Link
from support.rank_groups import MakeRanks, ProcessRanks, Ranks, ThreadRanks
from tokenweave.communicators import LinkedCommunicator, NullCommunicator, linked, thread_group
from tokenweave.errors import RankError
from tokenweave.link import LinkSpec

SLOW = "10MB/s,20ms"


def seconds(call: Callable[[], object]) -> float:
    started_s = time.monotonic()
    call()
    return time.monotonic() - started_s


def ports(ranks: Ranks) -> list[Link]:
    if isinstance(ranks, ProcessRanks):
        return ranks.ports
    found = []
    for communicator in ranks.communicators:
        assert isinstance(communicator, LinkedCommunicator)
        found.append(communicator.link)
    return found


@pytest.mark.parametrize(
    ("call", "least_s"),
    [
        (("barrier",), 0.02),
        (("all_reduce", (1000,), "float32"), 0.02 + 4e3 / 10e6),  # small: whole tensors, in one exchange
        (("all_reduce", (100_000,), "float32"), 2 * (0.02 + 200e3 / 10e6)),  # half of it each way, twice
        (("all_gather", (50_000,), "float32"), 0.02 + 200e3 / 10e6),
        (("broadcast", (50_000,), "float32", 0), 0.02 + 200e3 / 10e6),
        (("broadcast_bytes", b"x" * 100_000, 1, True), 0.02 + 100e3 / 10e6),
        (("gather_columns", 100, [100, 300], "float32", 0), 0.02 + 120e3 / 10e6),
        (("all_reduce_rms_norm", 1000, "float32"), 2 * (0.02 + 128e3 / 10e6)),
    ],
)
def test_an_exchange_takes_as_long_as_its_link(
    make: MakeRanks, call: tuple[object, ...], least_s: float
) -> None:
    ranks = make("linked-thread", 2, link=SLOW)
    assert seconds(lambda: ranks.run(*call)) >= least_s  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["linked-thread", "linked-shm-processes", "linked-shm-symmetric-processes"])
def test_the_ports_carry_what_the_ranks_exchange(make: MakeRanks, kind: str) -> None:
    ranks = make(kind, 2)
    for outcome in ranks.run("all_reduce_rms_norm", 1000, "float32"):
        assert not isinstance(outcome, Exception), outcome
    for port in ports(ranks):
        stats = port.stats()
        # (1000, 64) float32, half of it in the reduce-scatter and half in the all-gather, each way.
        assert (stats.read_bytes, stats.write_bytes) == (256_000, 256_000)
        assert (stats.read_transfers, stats.write_transfers) == (2, 2)


def test_rows_that_do_not_divide_are_counted_as_they_lie(make: MakeRanks) -> None:
    ranks = make("linked-torch", 2)
    ranks.run("all_reduce_rms_norm", 1001, "float32")
    sent = [port.stats().write_bytes // 256 for port in ports(ranks)]
    assert sent == [500 + 501, 501 + 500]  # 501 rows are rank 0's, 500 rank 1's


def test_a_port_is_shared_with_whatever_else_uses_it(make: MakeRanks) -> None:
    ranks = make("linked-shm-processes", 2, link="10MB/s,0ns")
    busy, before_ns = ports(ranks)[1], time.monotonic_ns()
    busy.reserve("write", 3_000_000, before_ns)  # somebody else's, for 0.3 s
    ranks.run("all_reduce", (1000,), "float32")
    assert time.monotonic_ns() - before_ns >= 300_000_000


def test_a_root_does_not_wait_for_what_it_sends(make: MakeRanks) -> None:
    ranks = make("linked-thread", 2, link="1MB/s,0ns")
    assert isinstance(ranks, ThreadRanks)
    root = ranks.communicators[0]
    assert isinstance(root, LinkedCommunicator)
    started_s = time.monotonic()
    assert ranks.run("broadcast_bytes", b"x" * 1_000_000, 0, True) == [b"x" * 1_000_000] * 2
    assert time.monotonic() - started_s >= 1.0
    assert root.link.stats().write_bytes == 1_000_000


class OwnTime(threading.local):
    """A clock of each thread's own, which only its sleeps move."""

    def __init__(self) -> None:
        self.now_ns, self.num_looks = time.monotonic_ns(), 0
        self.slept_s: list[float] = []

    def monotonic_ns(self) -> int:
        self.num_looks += 1
        return self.now_ns

    def sleep(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)
        self.now_ns += round(duration_s * 1e9)


def test_a_wait_for_the_link_leaves_the_core_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sleeps through all of it, a slice after the other, and looks at the clock once between two."""
    own_time = OwnTime()
    monkeypatch.setattr(linked, "time", own_time)
    first, second = (LinkedCommunicator(c, LinkSpec.parse("1MB/s,0ns").new_port()) for c in thread_group(2))
    other = threading.Thread(target=second.all_gather, args=(torch.zeros(50_000),))
    other.start()
    first.all_gather(torch.zeros(50_000))
    other.join()
    assert own_time.slept_s == pytest.approx([linked.SLICE_NS / 1e9] * 4)  # 200 kB at 1 MB/s
    assert own_time.num_looks == 2 + len(own_time.slept_s)
    for communicator in (first, second):
        communicator.close()


@pytest.mark.parametrize("kind", ["linked-thread", "linked-shm-processes", "linked-torch"])
def test_an_abort_ends_a_wait_for_the_link(make: MakeRanks, kind: str) -> None:
    ranks = make(kind, 2, link="1MB/s,0ns")
    if isinstance(ranks, ThreadRanks):
        finish = ranks.start("all_gather", (10_000_000,), "float32")  # 40 s
        time.sleep(0.5)
        ranks.communicators[0].abort("no time")
        outcomes = finish()
    else:
        outcomes = ranks.run("abort_during", 0.5, ("all_gather", (10_000_000,), "float32"))
    for outcome in outcomes:
        assert isinstance(outcome, RankError)
        assert "rank 0 aborted the job: no time" in str(outcome)


def test_its_name_says_that_it_is_modelled() -> None:
    with LinkedCommunicator(NullCommunicator(), LinkSpec.parse("0.25GB/s,5us").new_port()) as alone:
        assert alone.name == "null over 0.25 GB/s, 5 us (modelled)"


def test_one_rank_waits_for_nothing() -> None:
    with LinkedCommunicator(NullCommunicator(), LinkSpec.parse("1MB/s,1000ms").new_port()) as alone:
        alone.all_reduce(torch.zeros(1_000_000))
        alone.barrier()
        stats = alone.link.stats()
        assert (stats.read_transfers, stats.write_transfers) == (0, 0)


def test_kernels_are_those_of_the_inner_communicator() -> None:
    from tokenweave.kernels import make_kernels

    with LinkedCommunicator(NullCommunicator(), LinkSpec.parse("1GB/s,5us").new_port()) as linked:
        kernels = make_kernels("reference")
        linked.kernels = kernels
        assert linked.inner.kernels is kernels
        assert linked.kernels is kernels
