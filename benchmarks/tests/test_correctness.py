import pytest

from benchmarks.serve.correctness import TIE, check_exact, compare, matching_prefix
from interlace.errors import BenchError

ORACLE = [[1, 2, 3, 4], [5, 6, 7, 8]]
WIDE = [[1.0] * 4, [1.0] * 4]


def test_matching_prefix_ends_at_the_first_difference() -> None:
    assert matching_prefix([1, 2, 9, 4], [1, 2, 3, 4]) == 2
    assert matching_prefix([1, 2], [1, 2, 3]) == 2


def test_agreement_counts_prompts_and_prefixes() -> None:
    agreement = compare([[1, 2, 3, 4], [5, 0, 7, 8]], ORACLE)
    assert (agreement.num_prompts, agreement.num_identical, agreement.mean_prefix) == (2, 1, 2.5)


def test_equal_tokens_pass() -> None:
    check_exact("x", ORACLE, ORACLE, WIDE)
    check_exact("x", ORACLE, ORACLE, None)


def test_a_difference_stops_the_benchmark_and_names_the_place() -> None:
    with pytest.raises(BenchError, match="x is wrong on prompt 1: got 0 as token 1; expected 6"):
        check_exact("x", [[1, 2, 3, 4], [5, 0, 7, 8]], ORACLE, WIDE)


def test_a_difference_at_a_near_tie_is_allowed() -> None:
    margins = [[1.0] * 4, [1.0, TIE / 2, 1.0, 1.0]]
    check_exact("x", [[1, 2, 3, 4], [5, 0, 1, 1]], ORACLE, margins)


def test_without_margins_no_difference_is_allowed() -> None:
    with pytest.raises(BenchError, match="margin unknown"):
        check_exact("x", [[1, 2, 3, 4], [5, 0, 7, 8]], ORACLE, None)
