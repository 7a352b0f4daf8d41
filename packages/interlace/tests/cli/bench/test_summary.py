import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.cli.bench.summary import Summary, paired_ratio

rates = st.floats(min_value=0.1, max_value=1e6)


@given(st.lists(rates, min_size=1))
def test_the_median_lies_within_the_spread(samples: list[float]) -> None:
    summary = Summary.of(samples)
    assert summary.low <= summary.median <= summary.high
    assert summary.num_samples == len(samples)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        Summary.of([])


@given(st.lists(rates, min_size=1), st.floats(min_value=0.5, max_value=4))
def test_a_slow_round_that_hits_both_leaves_the_ratio_alone(theirs: list[float], factor: float) -> None:
    ratio = paired_ratio([factor * rate for rate in theirs], theirs)
    assert ratio.low == pytest.approx(factor)
    assert ratio.high == pytest.approx(factor)


def test_ratios_need_the_same_rounds() -> None:
    with pytest.raises(ValueError, match="got 2 and 1 samples"):
        paired_ratio([1.0, 2.0], [1.0])
