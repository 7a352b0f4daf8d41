"""The fused operation over symmetric memory against its reference: every shape, every round, and every failure."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

from support.fused_programs import EPS, Case, Outcome, inputs
from support.rank_groups import TIMEOUT_S, MakeRanks, Ranks, Workers, make_ranks
from support.rank_programs import ACTIVATIONS, norms_of
from tokenweave.communicators.activation_ring import NUM_BUFFERS
from tokenweave.kernels.norms import REDUCE_NORM_TOLERANCE, reference_reduce_rms_norm

GROUPS = [
    *[("shm-symmetric-threads", size) for size in (1, 2, 3, 4)],
    *[("shm-symmetric-processes", size) for size in (2, 4)],
]
TOKENS = (0, 1, 3, 4, 5, 7, 16, 33, 100)  # up to 4 go in one shot
HIDDEN_SIZES = (64, 100, 576, 4096)  # 100 is not of whole vectors


@pytest.fixture(scope="module", params=GROUPS, ids=lambda group: f"{group[0]}-{group[1]}")
def ranks(request: pytest.FixtureRequest, workers: Workers) -> Iterator[Ranks]:
    kind, size = request.param
    made = make_ranks(kind, size, workers, timeout_s=TIMEOUT_S)
    yield made
    made.close()


def assert_right(size: int, case: Case, seed: int, outcome: Outcome, kind: str = "before") -> None:
    normed, residual, owned = outcome
    parts, expected_residual, weight = inputs(size, case, seed)
    expected = reference_reduce_rms_norm(parts, expected_residual, norms_of(kind, weight, EPS))
    tolerance = REDUCE_NORM_TOLERANCE[normed.dtype]
    torch.testing.assert_close(normed, expected, rtol=tolerance.rtol, atol=tolerance.atol)
    rows = slice(owned.start, owned.stop)
    if kind in ("before", "neither"):
        assert torch.equal(residual[rows], expected_residual[rows])
    else:  # normed by another order of sums
        torch.testing.assert_close(residual[rows], expected_residual[rows], rtol=1e-5, atol=1e-5)


def assert_all_right(
    ranks: Ranks, cases: list[Case], outcomes: list[list[Outcome]], kind: str = "before"
) -> None:
    for of_rank in outcomes:
        assert not isinstance(of_rank, Exception), of_rank
        for seed, (case, outcome) in enumerate(zip(cases, of_rank, strict=True)):
            assert_right(ranks.size, case, seed, outcome, kind)


@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_reference(ranks: Ranks, dtype: str, hidden_size: int) -> None:
    cases = [(num_tokens, hidden_size, dtype) for num_tokens in TOKENS]
    assert_all_right(ranks, cases, ranks.run("fused_programs.fused", cases))


@pytest.mark.parametrize("kind", ["after", "both", "neither"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_reference_with_a_norm_after_the_sublayer_and_with_none_before_the_next(
    ranks: Ranks, dtype: str, kind: str
) -> None:
    cases = [(num_tokens, hidden_size, dtype) for num_tokens in (0, 1, 5, 33) for hidden_size in (100, 576)]
    outcomes = ranks.run("fused_programs.fused", cases, "partial", -1, kind)
    assert_all_right(ranks, cases, outcomes, kind)


@pytest.mark.parametrize("place", ["plain", "strided"])
def test_hidden_may_lie_anywhere(ranks: Ranks, place: str) -> None:
    cases = [(3, 64, "float32"), (33, 100, "bfloat16"), (7, 576, "float32")] * 3
    assert_all_right(ranks, cases, ranks.run("fused_programs.fused", cases, place))


def test_every_rank_has_the_same_bits(ranks: Ranks) -> None:
    first, *others = ranks.run("fused_programs.fused", [(4, 576, "bfloat16"), (33, 576, "bfloat16")])
    for other in others:
        for (normed, _, _), (wanted, _, _) in zip(other, first, strict=True):
            assert torch.equal(normed, wanted)


def test_each_row_of_the_residual_is_kept_by_one_rank_unless_all_keep_all(ranks: Ranks) -> None:
    outcomes = ranks.run("fused_programs.fused", [(33, 64, "float32"), (4, 64, "float32")])
    assert [row for (_, _, owned), _ in outcomes for row in owned] == list(range(33))
    assert all(owned == range(4) for _, (_, _, owned) in outcomes)


def test_rows_that_another_rank_keeps_are_left_alone(ranks: Ranks) -> None:
    case: Case = (33, 64, "float32")
    _, before, _ = inputs(ranks.size, case, 0)
    for ((_, residual, owned),) in ranks.run("fused_programs.fused", [case]):
        others = [row for row in range(33) if row not in owned]
        assert torch.equal(residual[others], before[others])


@pytest.mark.parametrize("slow_rank", [0, 1])
def test_buffers_come_round_again_while_a_rank_is_slow(ranks: Ranks, slow_rank: int) -> None:
    sizes = [(16, 576), (1, 64), (100, 64), (5, 100), (33, 64), (4, 576), (7, 64)]
    cases = [
        (*sizes[turn % len(sizes)], ("float32", "bfloat16")[turn % 2]) for turn in range(5 * NUM_BUFFERS)
    ]
    assert_all_right(ranks, cases, ranks.run("fused_programs.fused", cases, "partial", slow_rank))


@pytest.mark.parametrize("num_tokens", [4, 33])
def test_an_answer_outlasts_the_other_parts_reduction(ranks: Ranks, num_tokens: int) -> None:
    for intact in ranks.run("fused_programs.two_parts", (num_tokens, 64, "float32"), 2 * NUM_BUFFERS):
        assert all(intact)


def test_partial_sums_and_answers_are_not_copied(ranks: Ranks) -> None:
    assert ranks.run("fused_programs.takes_symmetric_memory", 33, 576, "bfloat16") == [True] * ranks.size
    assert ranks.run("fused_programs.answers_lie_in_one_memory", 33) == [True] * ranks.size


def test_what_is_too_large_for_the_buffers_goes_the_way_of_all_reduce(ranks: Ranks) -> None:
    num_tokens, hidden_size, _ = ACTIVATIONS
    case: Case = (num_tokens + 1, hidden_size, "float32")
    assert ranks.run("fused_programs.takes_symmetric_memory", *case) == [False] * ranks.size
    outcomes = ranks.run("fused_programs.fused", [case])
    assert_all_right(ranks, [case], outcomes)
    assert all(owned == range(num_tokens + 1) for ((_, _, owned),) in outcomes)
    twice = [(2 * num_tokens, hidden_size, "bfloat16")]  # as many bytes as fit
    assert_all_right(ranks, twice, ranks.run("fused_programs.fused", twice))


@pytest.mark.parametrize("hidden_size", [2048, 2056])
def test_a_large_answer_is_whole_whether_written_past_the_caches_or_not(
    make: MakeRanks, hidden_size: int
) -> None:
    """From 8 MB on it is, if rows are of whole cache lines."""
    ranks = make("shm-symmetric-threads", 2, activations=(1024, 2056, torch.float32))
    cases: list[Case] = [(1024, hidden_size, "float32"), (2048, hidden_size, "bfloat16")]
    assert_all_right(ranks, cases, ranks.run("fused_programs.fused", cases))


def test_reference_kernels_do_without_symmetric_memory(ranks: Ranks) -> None:
    case: Case = (7, 64, "float32")
    assert_all_right(ranks, [case], ranks.run("fused_programs.without_native_kernels", case))


@pytest.mark.parametrize(("num_tokens", "exchanges"), [(4, 1), (33, 2)])
def test_in_phases_it_is_the_same(ranks: Ranks, num_tokens: int, exchanges: int) -> None:
    case: Case = (num_tokens, 576, "bfloat16")
    whole = ranks.run("fused_programs.fused", [case])
    for (outcome, seen), ((normed, residual, _),) in zip(
        ranks.run("fused_programs.phased", case), whole, strict=True
    ):
        assert seen == exchanges
        assert torch.equal(outcome[0], normed)
        assert torch.equal(outcome[1], residual)


def test_bad_arguments_are_refused_and_harm_nothing(ranks: Ranks) -> None:
    for messages in ranks.run("fused_programs.refused"):
        assert all(message.startswith("CommunicatorError: ") for message in messages), messages
        assert (
            "got a residual of torch.bfloat16 (5, 8); expected torch.float32 (5, 8), contiguous"
            in messages[0]
        )
        assert "got a weight of torch.float32 (7,); expected torch.float32 (8,), contiguous" in messages[3]
        assert "got a post_weight of torch.float32 (7,); expected torch.float32 (8,)" in messages[5]
        assert "a group reserves them once" in messages[6]
    case: Case = (5, 64, "float32")
    assert_all_right(ranks, [case], ranks.run("fused_programs.fused", [case]))


@pytest.mark.parametrize("kind", ["shm-symmetric-threads", "shm-symmetric-processes"])
@pytest.mark.parametrize("num_tokens", [4, 33])
def test_an_abort_ends_it_and_leaves_nothing_behind(make: MakeRanks, kind: str, num_tokens: int) -> None:
    ranks = make(kind, 3)
    first, _, last = ranks.run("fused_programs.aborted_mid_way", 1, num_tokens)
    assert first == last == "RankError: rank 1 aborted the job: no memory"
    cases: list[Case] = [(num_tokens, 64, "float32")] * 5
    for outcome in ranks.run("fused_programs.fused", cases):
        assert "rank 1 aborted the job: no memory" in str(outcome)
    again = (
        make(kind, 3) if kind.endswith("threads") else None
    )  # the processes belong to the first group still
    if again is not None:
        assert_all_right(again, cases, again.run("fused_programs.fused", cases))


@pytest.mark.parametrize("num_tokens", [33])
def test_a_killed_rank_ends_the_others_between_the_two_synchronisations(
    make: MakeRanks, num_tokens: int
) -> None:
    ranks = make("shm-symmetric-processes", 3)
    first, killed, last = ranks.run("fused_programs.killed_mid_way", 1, num_tokens)
    assert killed == "gone"
    for text in (first, last):
        assert text.startswith("RankError: rank 1 died")


def test_ranks_that_bring_different_numbers_of_tokens_are_told(make: MakeRanks) -> None:
    for text in make("shm-symmetric-threads", 3).run("fused_programs.mismatched", 1):
        assert text.startswith("CollectiveMismatch: "), text
        assert "all_reduce_rms_norm(2048 bytes of float32) at offset" in text
        assert "all_reduce_rms_norm(1792 bytes of float32) at offset" in text


def test_ranks_that_took_different_buffers_are_told(make: MakeRanks) -> None:
    """Their sums would be of other tokens, or of bytes that are being written."""
    for text in make("shm-symmetric-threads", 3).run("fused_programs.out_of_step", 1):
        assert text.startswith("CollectiveMismatch: "), text
        assert len(set(re.findall(r"at offset (\d+)", text))) == 2, text
