"""The native sampler on every instruction set, and the device's on the CPU, against their reference, bit for bit.

And the rules that all three rest on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from support.device_sampling import device_sample
from tokenweave import native
from tokenweave.errors import KernelError
from tokenweave.native import ThreadPool
from tokenweave.sampling import SampledRow, SamplingRow, native_sample, reference_sample
from tokenweave.sampling.reference import exp_of_negative, masses, quanta_of_one

Sample = Callable[[torch.Tensor, Sequence[SamplingRow]], list[SampledRow]]
SAMPLERS: list[Sample] = []


@pytest.fixture(scope="module", autouse=True)
def samplers() -> Iterator[None]:
    """Each instruction set of this machine, on one thread and on three; then the device's sampler."""
    pools = [ThreadPool(threads, isa) for isa in native.available_isas() for threads in (1, 3)]
    SAMPLERS.extend(partial(native_sample, pool) for pool in pools)
    SAMPLERS.append(device_sample)
    yield
    SAMPLERS.clear()
    for pool in pools:
        pool.close()


rows_of = st.builds(
    SamplingRow,
    tokens=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30).map(np.array),
    num_prompt=st.integers(0, 1),
    seed=st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([0.0, 1e-5, 0.3, 1.0, 1.7, 3e38]),
    top_k=st.sampled_from([-1, 0, 1, 5, 400, 2**63 - 1]),
    top_p=st.sampled_from([1.0, 1 - 1e-9, 0.95, 0.4, 1e-6, 5e-324]),
    min_p=st.sampled_from([0.0, 1e-40, 0.1, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.4, 0.01]),
    frequency_penalty=st.sampled_from([0.0, 0.9]),
    presence_penalty=st.sampled_from([0.0, -0.7]),
    logprobs=st.sampled_from([None, 0, 3, 50]),
)


def logits_of(seed: int, num_rows: int, vocab_size: int, scale: float, ties: bool) -> torch.Tensor:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal((num_rows, vocab_size)) * scale).astype(np.float32)
    return torch.from_numpy(np.round(logits) if ties else logits)


def within(row: SamplingRow, vocab_size: int) -> SamplingRow:
    return row._replace(tokens=(row.tokens % vocab_size).astype(np.int32))


@settings(max_examples=60)
@given(
    rows=st.lists(rows_of, min_size=1, max_size=6),
    vocab_size=st.sampled_from([1, 2, 16, 17, 255, 1000, 4096, 5003]),
    scale=st.sampled_from([0.0, 0.1, 3.0, 30.0, 1e30]),
    ties=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_sampler_gives_the_bits_of_the_reference(
    rows: list[SamplingRow], vocab_size: int, scale: float, ties: bool, seed: int
) -> None:
    logits = logits_of(seed, len(rows), vocab_size, scale, ties)
    rows = [within(row, vocab_size) for row in rows]
    expected = reference_sample(logits, rows)
    for sample in SAMPLERS:
        assert sample(logits, rows) == expected


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.99, 1 - 1e-6])
@pytest.mark.parametrize("heavy", [0, 1, 12])
def test_a_nucleus_is_the_same_where_a_guess_of_its_edge_fails(top_p: float, heavy: int) -> None:
    """Rows on which a sample says much, or nothing: most of the mass may be on a few tokens."""
    logits = logits_of(1, 4, 20_000, 1.0, False)
    logits[1:, 3:20_000:1_601][:, :heavy] += 12
    logits[3] = logits[3].sort().values
    rows = [SamplingRow(np.zeros(1, np.int32), 0, seed, top_p=top_p) for seed in range(4)]
    for sample in SAMPLERS[-2:]:
        assert sample(logits, rows) == reference_sample(logits, rows)


@pytest.mark.parametrize("scale", [1e-4, 0.02, 1.0, 4.0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_nucleus_is_the_same_where_rough_weights_do_not_settle_its_edge(scale: float, top_p: float) -> None:
    """Of nearly even rows a token weighs about as much as rough weights may be off, all together."""
    logits = logits_of(2, 6, 20_011, scale, False)
    rows = [
        SamplingRow(np.zeros(1, np.int32), 0, seed, top_p=top_p, temperature=temperature, min_p=min_p)
        for seed, (temperature, min_p) in enumerate(
            [(1.0, 0.0), (0.6, 0.0), (1e-4, 0.0), (2e3, 0.0), (1.3, 0.2), (1.0, 1e-6)]
        )
    ]
    expected = reference_sample(logits, rows)
    for sample in SAMPLERS:
        assert sample(logits, rows) == expected


def test_an_infinity_below_may_stand_anywhere_in_a_nucleus_of_few() -> None:
    logits = logits_of(3, 4, 9_000, 5.0, False)
    logits[:, ::3] = -float("inf")
    logits[2:, 10:] = -float("inf")
    rows = [SamplingRow(np.zeros(1, np.int32), 0, seed, top_p=0.97) for seed in range(4)]
    expected = reference_sample(logits, rows)
    for sample in SAMPLERS:
        assert sample(logits, rows) == expected


def test_all_of_a_large_vocabulary_may_tie_at_the_top_k_edge() -> None:
    logits = torch.zeros(4, 5000)
    rows = [SamplingRow(np.zeros(1, np.int32), 0, seed, top_k=5, top_p=0.9) for seed in range(4)]
    for sample in SAMPLERS[-2:]:
        assert sample(logits, rows) == reference_sample(logits, rows)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_without_a_finite_largest_logit_has_no_token(bad: float) -> None:
    logits = logits_of(0, 3, 700, 1.0, False)
    rows = [SamplingRow(np.zeros(1, np.int32), 0, seed) for seed in range(3)]
    healthy = reference_sample(logits, rows)
    logits[1] = bad if bad < 0 else logits[1]
    logits[1, 650] = bad
    for sample in (reference_sample, *SAMPLERS[-2:]):
        sampled = sample(logits, rows)
        assert sampled[1].token is None
        assert str(sampled[1].largest) == str(bad)
        assert [sampled[0], sampled[2]] == [healthy[0], healthy[2]]


def test_the_exponential_is_right_to_a_unit_in_the_last_place() -> None:
    x = np.linspace(-87, 0, 200_001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exp_of_negative(x) - exact).max() <= np.spacing(np.float32(1))
    assert (np.abs(exp_of_negative(x) - exact) <= np.spacing(exact.astype(np.float32))).all()
    assert exp_of_negative(np.array([0, -np.inf, -88], np.float32)).tolist() == [1, 0, 0]


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 49_152, 65_536, 65_537])
def test_the_mass_of_a_whole_vocabulary_is_an_integer_that_a_double_holds(vocab_size: int) -> None:
    assert masses(np.ones(1, np.float32), vocab_size).tolist() == [quanta_of_one(vocab_size)]
    assert 2**50 <= vocab_size * quanta_of_one(vocab_size) <= 2**52


def test_bad_arguments_are_refused() -> None:
    row = SamplingRow(np.array([5], np.int32), 1, 0, repetition_penalty=2.0)
    logits = torch.zeros(1, 6)
    bad_rows = (
        row._replace(tokens=np.array([6], np.int32)),
        row._replace(tokens=np.array([-1], np.int32)),
        row._replace(num_prompt=2),
        row._replace(temperature=-1.0),
        row._replace(top_p=float("nan")),
        row._replace(repetition_penalty=0.0),
        row._replace(presence_penalty=float("inf")),
    )
    bad_logits = (
        torch.zeros(2, 6),
        torch.zeros(6),
        torch.zeros(1, 6, dtype=torch.float64),
        torch.zeros(1, 0),
    )
    for sample in SAMPLERS[-2:]:
        assert sample(logits, [row])[0].token is not None
        for bad in bad_rows:
            with pytest.raises((KernelError, OverflowError)):
                sample(logits, [bad])
        for wrong in bad_logits:
            with pytest.raises(KernelError, match="logits"):
                sample(wrong, [row._replace(tokens=np.zeros(1, np.int32))])


def test_no_rows_give_no_tokens() -> None:
    for sample in SAMPLERS[-2:]:
        assert sample(torch.zeros(0, 6), []) == []
