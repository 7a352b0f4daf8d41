"""The CUDA kernels' waits on a CPU (Triton's interpreter): every one ends, says why, and leaves nothing behind."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from support.patience import wait_until
from support.rank_groups import TIMEOUT_S, ProcessRanks, Ranks, Workers, make_ranks
from tokenweave.kernels.cuda.sharing import tag_of

pytest.importorskip("triton", reason="triton is not installed")

SHORT_S = 1.0  # of a wait that is in vain


@pytest.fixture
def make(workers: Workers) -> Iterator[Callable[..., ProcessRanks]]:
    made: list[Ranks] = []

    def make_one(size: int) -> ProcessRanks:
        while made:  # one group after the other: they are served by the same processes
            made.pop().close()
        ranks = make_ranks("symm_mem", size, workers, timeout_s=TIMEOUT_S)
        assert isinstance(ranks, ProcessRanks)
        made.append(ranks)
        assert ranks.run("symm_programs.prepare") == [None] * size
        return ranks

    yield make_one
    for ranks in made:
        ranks.close()


@pytest.mark.parametrize("num_tokens", [2, 5])
def test_a_rank_that_does_not_come_ends_the_others_waits(
    make: Callable[..., ProcessRanks], num_tokens: int
) -> None:
    ranks = make(2)
    ranks.run("symm_programs.hurry", SHORT_S, ranks=[0])
    (outcome,) = ranks.run("symm_programs.time_to_raise", num_tokens, ranks=[0])
    took_s, first, second = outcome
    assert took_s >= SHORT_S
    assert first == (
        "CommunicatorTimeout: rank 0 waited 1 s in all_reduce_rms_norm for rank 1; check that it is alive, or raise "
        "timeout_s"
    )
    assert second.startswith("RankError: rank 0 waited 1 s")


def test_a_rank_that_has_failed_never_signals_again(make: Callable[..., ProcessRanks]) -> None:
    """Or its peer would take a later call's signal for the one that it misses."""
    ranks = make(2)
    ranks.run("symm_programs.hurry", SHORT_S, ranks=[0])
    ((first, *_),) = ranks.run("symm_programs.launch_after_a_failure", 5, ranks=[0])
    assert first == "CommunicatorTimeout"
    (counters,) = ranks.run("symm_programs.signals", ranks=[1])
    # Of the first wait, of CTA 0: CTA 1 came after the failure. `prepare` left the epoch of a CTA at three.
    assert counters == [0, 0, tag_of(5, 2), 0] + [0] * 4


def test_kernels_behind_a_failed_one_end_at_once_and_leave_what_it_said_to_whoever_waits_for_the_device(
    make: Callable[..., ProcessRanks],
) -> None:
    ranks = make(2)
    ranks.run("symm_programs.hurry", SHORT_S, ranks=[0])
    ((said, raised),) = ranks.run("symm_programs.launch_behind_a_failure", 5, ranks=[0])
    assert said[0] != 0
    assert said == [said[0]] * 3
    assert raised.startswith("CommunicatorTimeout: rank 0 waited 1 s in all_reduce_rms_norm for rank 1")


@pytest.mark.parametrize("tokens", [(5, 4), (3, 5)])  # both by owners; one shot beside it
def test_ranks_with_different_numbers_of_tokens_are_told_of_each_others(
    make: Callable[..., ProcessRanks], tokens: tuple[int, int]
) -> None:
    ranks = make(2)
    finish = ranks.start("symm_programs.time_to_raise", tokens[0], ranks=[0])
    outcomes = [*ranks.run("symm_programs.time_to_raise", tokens[1], ranks=[1]), *finish()]
    for rank, (_, first, second) in zip((1, 0), outcomes, strict=True):
        own, other = (f"all_reduce_rms_norm of {tokens[r]} tokens in 2 CTAs" for r in (rank, 1 - rank))
        wanted = f"CollectiveMismatch: rank {rank} called {own} where rank {1 - rank} called {other}; every rank must"
        assert first == second == f"{wanted} make the same calls in order"


def test_ranks_with_different_numbers_of_ctas_are_told_of_each_others(
    make: Callable[..., ProcessRanks],
) -> None:
    ranks = make(2)
    finish = ranks.start("symm_programs.called_with_ctas", 1, 9, ranks=[0])
    outcomes = [*ranks.run("symm_programs.called_with_ctas", 2, 9, ranks=[1]), *finish()]
    for rank, first in zip((1, 0), outcomes, strict=True):
        assert first.startswith(f"CollectiveMismatch: rank {rank} called all_reduce_rms_norm of 9 tokens in ")
        assert f"{rank + 1} CTAs where rank" in first


def test_a_killed_rank_ends_the_others_waits_and_a_new_group_starts_clean(
    make: Callable[..., ProcessRanks],
) -> None:
    left = [0, 1, 2]
    for timeout_s in (SHORT_S, 10 * SHORT_S, TIMEOUT_S):
        ranks = make(4)
        assert ranks.run("symm_programs.fused_once", 5) == [None] * 4
        assert ranks.run("kill_self", ranks=[3]) == ["gone"]
        ranks.run("symm_programs.hurry", timeout_s, ranks=left)
        told = [first for _, first, _ in ranks.run("symm_programs.time_to_raise", 9, ranks=left)]
        if all("for rank 3" in first for first in told):
            break  # or a busy machine had kept one of the three that long
    for first in told:
        assert first.startswith(("CommunicatorTimeout", "RankError"))
        assert "for rank 3" in first
    again = make(2)
    assert again.run("symm_programs.pads") == [[0] * 8] * 2
    assert again.run("symm_programs.fused_once", 5) == [None] * 2
    assert again.run("symm_programs.pads") == [[0] * 8] * 2


def test_a_rank_that_is_killed_inside_a_call_ends_the_others_wait_on_the_way_out(
    make: Callable[..., ProcessRanks],
) -> None:
    ranks = make(2)
    finish = ranks.start("symm_programs.fused_once", 5, ranks=[1])
    wait_until(lambda: any(ranks.run("symm_programs.signals", ranks=[0])[0]), "rank 1's signal")
    ranks.workers[1].process.send_signal(signal.SIGKILL)
    assert finish() == ["gone"]
    ranks.run("symm_programs.hurry", SHORT_S, ranks=[0])
    ((_, first, _),) = ranks.run("symm_programs.time_to_raise", 5, ranks=[0])
    assert "for rank 1" in first


def test_an_abort_ends_a_wait_before_its_timeout(make: Callable[..., ProcessRanks]) -> None:
    ranks = make(2)
    (outcome,) = ranks.run("symm_programs.aborted_while_it_waits", 5, 0.3, ranks=[0])
    _, first, second = outcome
    assert first == second == "RankError: rank 0 aborted the job: enough"
