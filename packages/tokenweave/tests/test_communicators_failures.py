"""The communicator contract, on every backend: every wait ends, and says why."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucxl.shared_memory import SharedSegment
from support.patience import PATIENCE_S, wait_until
from support.rank_groups import (
    SLOT_BYTES,
    TIMEOUT_S,
    MakeRanks,
    ProcessRanks,
    Ranks,
    ThreadRanks,
    free_port,
)
from tokenweave.communicators import ShmCommunicator, TorchCommunicator, segment_bytes, thread_group
from tokenweave.errors import CollectiveMismatch, CommunicatorError, CommunicatorTimeout, RankError

KINDS = [
    *("thread", "shm-threads", "shm-processes", "shm-symmetric-threads", "shm-symmetric-processes", "torch"),
    *("linked-thread", "linked-shm-processes"),
]
ROOT = Path(__file__).parents[3]


def hurried(make: MakeRanks, kind: str, size: int) -> Iterator[tuple[Ranks, float]]:
    """A group of a short timeout, and others in its place for as long as a busy machine needs more to start them."""
    for timeout_s in (0.3, 5.0, TIMEOUT_S):
        try:
            ranks = make(kind, size, timeout_s=timeout_s)
        except CommunicatorTimeout:  # it was too short even to meet
            continue
        yield ranks, timeout_s
        ranks.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "call", [("barrier",), ("all_reduce", (3,), "float32"), ("broadcast", (3,), "int32", 2)]
)
def test_a_timeout_names_the_ranks_that_did_not_come(
    make: MakeRanks, kind: str, call: tuple[object, ...]
) -> None:
    for ranks, timeout_s in hurried(make, kind, 3):
        early, late = ranks.run(*call, ranks=[0, 1])
        timeout, waited = early if isinstance(early, CommunicatorTimeout) else late, f"waited {timeout_s:g} s"
        if "for ranks " not in str(timeout):
            break  # or one of the two had come too late itself
    errors = {type(early), type(late)}
    assert CommunicatorTimeout in errors
    assert errors <= {CommunicatorTimeout, RankError}  # the second may hear of the first one's timeout
    assert f"{waited} in {call[0]}" in str(timeout)
    assert "for rank 2; check that they are alive, or raise timeout_s" in str(timeout)


@pytest.mark.parametrize("kind", ["thread", "shm-threads", "torch"])
def test_after_a_timeout_the_late_rank_is_told(make: MakeRanks, kind: str) -> None:
    ranks, timeout_s = next(hurried(make, kind, 2))
    assert isinstance(ranks.run("barrier", ranks=[0])[0], CommunicatorTimeout)
    late = ranks.run("all_gather", (3,), "float32", ranks=[1])[0]
    if kind != "torch":  # there it may also find that rank 0 has come and gone
        assert isinstance(late, RankError)
        assert f"rank 0 waited {timeout_s:g} s in barrier for rank 1" in str(late)
    assert isinstance(ranks.run("barrier", ranks=[0])[0], RankError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("waits_in", ["barrier", "wait_for_command"])
def test_an_abort_ends_the_waits_of_the_others(make: MakeRanks, kind: str, waits_in: str) -> None:
    ranks = make(kind, 3)
    finish = ranks.start(waits_in, ranks=[1, 2])
    time.sleep(0.1)
    assert ranks.run("abort", "no memory", ranks=[0]) == [None]
    outcomes = finish()
    later = ranks.run("barrier")
    for outcome in [*outcomes, *later]:
        assert isinstance(outcome, RankError)
        assert outcome.rank == 0
        assert str(outcome) == "rank 0 aborted the job: no memory"


def test_an_aborted_null_communicator_says_so_too(make: MakeRanks) -> None:
    ranks = make("null", 1)
    ranks.run("abort", "first")
    ranks.run("abort", "second")
    (outcome,) = ranks.run("barrier")
    assert str(outcome) == "rank 0 aborted the job: first"


MISMATCHES = [
    (("barrier",), ("all_reduce", (3,), "float32"), "barrier", "all_reduce"),
    (("all_reduce", (4,), "float32"), ("all_reduce", (3,), "float32"), "all_reduce", "all_reduce"),
    (("all_reduce", (2,), "int32"), ("all_reduce", (2,), "float32"), "int32", "float32"),
    (("all_gather", (3,), "uint8"), ("all_gather", (5,), "uint8"), "all_gather", "all_gather"),
    (("broadcast", (3,), "int32", 0), ("broadcast", (3,), "int32", 1), "from rank 0", "from rank 1"),
    (("broadcast", (3,), "int32", 0), ("all_gather", (3,), "int32"), "broadcast", "all_gather"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("odd", "even", "one", "other"), MISMATCHES)
def test_ranks_that_call_different_things_are_told_what(
    make: MakeRanks, kind: str, odd: tuple[object, ...], even: tuple[object, ...], one: str, other: str
) -> None:
    ranks = make(kind, 3)
    ranks.run("on_rank", 1, odd, even)  # a root that waits for nobody may return before it can be told
    for outcome in ranks.run("barrier"):
        assert isinstance(outcome, CollectiveMismatch)
        assert "every rank must make the same calls in order" in str(outcome)
        assert one in str(outcome)
        assert other in str(outcome)


@pytest.mark.parametrize("kind", ["shm-processes", "torch"])
@pytest.mark.parametrize(
    "waits_in",
    ["all_reduce", *[pytest.param(call, marks=pytest.mark.slow) for call in ("barrier", "wait_for_command")]],
)
def test_a_killed_rank_ends_the_waits_of_the_others(make: MakeRanks, kind: str, waits_in: str) -> None:
    ranks = make(kind, 3)
    assert isinstance(ranks, ProcessRanks)
    victim, waiting = (0, [1, 2]) if waits_in == "wait_for_command" else (1, [0, 2])
    arguments: tuple[object, ...] = ((70000,), "float32") if waits_in == "all_reduce" else ()
    finish = ranks.start(waits_in, *arguments, ranks=waiting)
    time.sleep(0.2)
    ranks.start("kill_self", ranks=[victim])
    for outcome in finish():
        assert isinstance(outcome, RankError), outcome
        assert outcome.rank == victim
        assert f"rank {victim}" in str(outcome)


def test_a_death_is_noticed_by_who_waits_for_another(make: MakeRanks) -> None:
    ranks = make("shm-processes", 3)
    finish = ranks.start("wait_for_command", ranks=[1])  # of rank 0, which is alive
    ranks.start("kill_self", ranks=[2])
    (outcome,) = finish()
    assert isinstance(outcome, RankError)
    assert outcome.rank == 2
    assert "rank 2 died: its process ended" in str(outcome)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_that_leaves_ends_the_waits_of_the_others(make: MakeRanks, kind: str) -> None:
    ranks = make(kind, 3)
    ranks.run("barrier")
    finish = ranks.start("barrier", ranks=[0, 2])
    ranks.run("close", ranks=[1])
    for outcome in finish():
        assert isinstance(outcome, RankError)
        assert outcome.rank == 1
        assert "rank 1" in str(outcome)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, 1])
def test_leaving_a_with_block_by_an_exception_ends_the_waits(make: MakeRanks, kind: str, rank: int) -> None:
    ranks = make(kind, 2)
    finish = ranks.start("barrier", ranks=[1 - rank])
    ranks.run("raise_within_with", ranks=[rank])
    (outcome,) = finish()
    assert isinstance(outcome, RankError)
    assert outcome.rank == rank
    assert str(outcome) == f"rank {rank} aborted the job: ValueError: a bug"


@pytest.mark.parametrize("kind", ["thread", "shm-processes", "torch"])
def test_a_step_that_fails_ends_the_transfers_of_every_rank(make: MakeRanks, kind: str) -> None:
    ranks = make(kind, 2)
    (failed,) = ranks.run("fail_in_a_lane", ranks=[1])
    assert failed == "out of memory, say; the transfer has ended: True"
    (outcome,) = ranks.run("barrier", ranks=[0])
    assert str(outcome) == "rank 1 aborted the job: ValueError('out of memory, say')"


def test_a_rank_dies_though_a_child_that_it_forked_lives(make: MakeRanks) -> None:
    ranks = make("shm-processes", 2)
    assert isinstance(ranks, ProcessRanks)
    finish = ranks.start("barrier", ranks=[0])
    ranks.start("die_leaving_a_child", ranks=[1])
    (outcome,) = finish()
    ranks.workers[1].process.wait(PATIENCE_S)
    assert isinstance(outcome, RankError)
    assert "rank 1 died: its process ended" in str(outcome)


def test_a_forked_child_may_not_call_and_harms_nothing(make: MakeRanks) -> None:
    ranks = make("shm-processes", 2)
    finish = ranks.start("barrier", ranks=[0])
    (told,) = ranks.run("call_in_a_forked_child", ranks=[1])
    expected = (
        "rank 1 was called in a process forked from it; only the process that joined the group may call"
    )
    assert told == expected
    assert finish() == [None]


@pytest.mark.parametrize("kind", ["null", *KINDS])
def test_a_closed_communicator_refuses_calls_and_closes_again(make: MakeRanks, kind: str) -> None:
    ranks = make(kind, 1)
    assert ranks.run("close") == [None]
    assert ranks.run("close") == [None]
    (outcome,) = ranks.run("barrier")
    assert isinstance(outcome, CommunicatorError)
    assert "the communicator is closed" in str(outcome)
    assert ranks.run("abort", "too late to matter") == [None]


def test_a_communicator_is_closed_by_its_context() -> None:
    (alone,) = thread_group(1)
    with alone:
        alone.barrier()
    with pytest.raises(CommunicatorError, match="closed"):
        alone.barrier()


def test_a_supervisor_marks_a_rank_as_failed(make: MakeRanks) -> None:
    ranks = make("shm-threads", 3)
    assert isinstance(ranks, ThreadRanks)
    finish = ranks.start("wait_for_command", ranks=[1])
    supervised = ranks.communicators[0]
    assert isinstance(supervised, ShmCommunicator)
    supervised.mark_failed(2, "was killed by SIGSEGV")
    for outcome in [*finish(), *ranks.run("barrier")]:
        assert isinstance(outcome, RankError)
        assert outcome.rank == 2
        assert str(outcome) == "rank 2 failed: was killed by SIGSEGV"


def test_a_long_reason_is_cut_not_spilled(make: MakeRanks) -> None:
    ranks = make("shm-threads", 2)
    ranks.run("abort", "x" * 5000 + "\0é", ranks=[1])
    (outcome,) = ranks.run("barrier", ranks=[0])
    assert str(outcome).startswith("rank 1 aborted the job: xxx")
    assert len(str(outcome)) < 512


def test_a_segment_serves_a_rank_once() -> None:
    with SharedSegment.create("test", segment_bytes(2, SLOT_BYTES)) as segment:
        ShmCommunicator(segment, 0, 2, slot_bytes=SLOT_BYTES).close()
        with pytest.raises(CommunicatorError, match="a segment serves one group, once"):
            ShmCommunicator(segment, 0, 2, slot_bytes=SLOT_BYTES)
        with pytest.raises(CommunicatorError, match="or with other sizes"):
            ShmCommunicator(segment, 0, 1, slot_bytes=SLOT_BYTES)


def test_a_segment_that_is_too_small_is_refused() -> None:
    with (
        SharedSegment.create("test", 4096) as segment,
        pytest.raises(
            CommunicatorError, match=r"got a segment of 4,096 bytes; 2 ranks .* need [\d,]+: create it"
        ),
    ):
        ShmCommunicator(segment, 0, 2)


@pytest.mark.parametrize(
    ("size", "slot_bytes"), [(0, 4096), (65, 4096), (2, 0), (2, 1000), (-1, 4096), (2, -4096)]
)
def test_sizes_that_cannot_be_are_refused(size: int, slot_bytes: int) -> None:
    with pytest.raises(CommunicatorError, match="expected 1 to 64 ranks and a positive multiple of 4096"):
        segment_bytes(size, slot_bytes)


def test_a_segment_outlives_the_communicators_in_it() -> None:
    from emucxl.errors import SegmentError

    segment = SharedSegment.create("test", segment_bytes(1))
    communicator = ShmCommunicator(segment, 0, 1)
    with pytest.raises(SegmentError, match="while a view of it is in use"):
        segment.close()
    communicator.close()
    segment.close()


def test_nothing_is_left_behind(make: MakeRanks) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    names, before = set(os.listdir("/dev/shm")), descriptors()
    for _ in range(3):
        ranks = make("shm-threads", 3)
        ranks.run("fixed_sum_many_times", 3)
        ranks.close()
    assert descriptors() == before
    # What other programs of this machine put there meanwhile goes, too.
    wait_until(lambda: set(os.listdir("/dev/shm")) <= names, "an empty /dev/shm")


def test_ranks_of_torch_that_never_meet_time_out() -> None:
    with pytest.raises(
        CommunicatorTimeout, match=r"rank 1 could not meet the other 1 at 127.0.0.1:\d+ within 1 s"
    ):
        TorchCommunicator.connect(1, 2, "127.0.0.1", 1, timeout_s=1)


def test_a_start_that_failed_does_not_spoil_the_next() -> None:
    script, port, later = ROOT / "tests" / "support" / "torch_restart.py", free_port(), free_port()
    first = subprocess.Popen(
        [sys.executable, script, "0", str(port), str(later)], stdout=subprocess.PIPE, text=True
    )
    second = subprocess.Popen([sys.executable, script, "1", "0", str(later)])
    printed, _ = first.communicate(timeout=120)
    assert second.wait(timeout=120) == 0
    alone, together = printed.splitlines()
    assert f"rank 0 could not meet rank 1 of 2 at 127.0.0.1:{port} within 0.5 s" in alone
    assert together == "met"


def test_whoever_started_the_ranks_may_end_their_meeting() -> None:
    def watch() -> None:
        raise RankError("rank 1 was killed by SIGKILL", 1)

    with pytest.raises(RankError, match="rank 1 was killed by SIGKILL"):
        TorchCommunicator.connect(0, 2, "127.0.0.1", free_port(), timeout_s=60, watch=watch)


def test_torch_must_be_initialised_for_its_groups() -> None:
    with pytest.raises(CommunicatorError, match="is not initialised; use TorchCommunicator"):
        TorchCommunicator()
