"""The sampler against independent oracles: plain NumPy written from the definitions, and transformers' processors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from interlace.engine.output import Logprob
from interlace.engine.sampler import HostSampler, SampledToken, row_of
from interlace.engine.sampling_params import FLOAT32_MAX, SamplingParams
from interlace.engine.sequence import Sequence
from interlace.errors import RequestFailed
from tokenweave.native import ThreadPool
from tokenweave.sampling import SamplingRow, reference
from tokenweave.sampling.reference import uniform

VOCAB = 1000


def make_sequence(
    params: SamplingParams, prompt: list[int] | None = None, output: list[int] | None = None, seed: int = 0
) -> Sequence:
    sequence = Sequence("r", prompt or [1], params, params.seed if params.seed is not None else seed, 4096)
    for token in output or []:
        sequence.append_token(token)
    return sequence


POOLS: list[ThreadPool] = []


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    """One pool for all tests here."""
    POOLS.append(ThreadPool(2))
    yield
    POOLS.pop().close()


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[SampledToken]:
    """The tokens of rows that all have one, of the native sampler and of the reference; raises what a row gave."""
    tokens = []
    native = HostSampler(POOLS[0]).sample(logits, sequences).fetch()
    if not any(isinstance(token, Exception) for token in native):
        assert HostSampler().sample(logits, sequences).fetch() == native
    for token in native:
        if isinstance(token, Exception):
            raise token
        tokens.append(token)
    return tokens


def filtered(row: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    return reference.filtered(row, choice_of(params))


def penalised(row: np.ndarray, sequence: Sequence) -> np.ndarray:
    return reference.penalised(row, row_of(sequence))


def choice_of(params: SamplingParams) -> SamplingRow:
    return row_of(make_sequence(params))


def make_logits(seed: int, vocab: int = VOCAB, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(vocab) * scale).astype(np.float32)


def params_of(**values: object) -> SamplingParams:
    return SamplingParams(max_tokens=100, **values)  # type: ignore[arg-type]


some_params = st.builds(
    SamplingParams,
    max_tokens=st.just(100),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([-1, 0, 1, 5, 400, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.4, 1e-6]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    presence_penalty=st.sampled_from([0.0, -0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.9]),
    seed=st.integers(0, 2**64 - 1),
    logprobs=st.sampled_from([None, 0, 3]),
)


@settings(max_examples=100)
@given(
    each=st.lists(st.tuples(some_params, st.integers(0, 50)), min_size=1, max_size=8),
    vocab=st.sampled_from([1, 7, 256, 1000, 4099]),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
)
def test_a_batch_gives_bit_for_bit_what_each_row_gives_alone(
    each: list[tuple[SamplingParams, int]], vocab: int, scale: float
) -> None:
    logits = torch.from_numpy(np.stack([make_logits(i, vocab, scale) for i in range(len(each))]))
    sequences = [make_sequence(params, [0], [n % vocab for n in range(length)]) for params, length in each]
    alone = [sample(logits[i : i + 1].clone(), [s])[0] for i, s in enumerate(sequences)]
    assert sample(logits, sequences) == alone
    assert sample(logits.flip(0).contiguous(), sequences[::-1]) == alone[::-1]


# --- penalties: the definitions, token by token


def penalised_slowly(
    row: np.ndarray, params: SamplingParams, prompt: list[int], output: list[int]
) -> np.ndarray:
    scores = row.astype(np.float64)
    for token in set(prompt) | set(output):
        scores[token] = (
            scores[token] / params.repetition_penalty
            if scores[token] > 0
            else scores[token] * params.repetition_penalty
        )
    for token, count in Counter(output).items():
        scores[token] -= params.frequency_penalty * count + params.presence_penalty
    return scores


@pytest.mark.parametrize(
    "values",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"presence_penalty": 1.5},
        {"presence_penalty": -1.5},
        {"frequency_penalty": 0.6},
        {"frequency_penalty": -0.6},
        {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.4},
    ],
)
def test_penalties_are_those_of_the_definitions(values: dict[str, float]) -> None:
    params, prompt, output = params_of(**values), [3, 5, 5, 8], [5, 9, 9, 9, 11]
    row = make_logits(1)
    np.testing.assert_allclose(
        penalised(row, make_sequence(params, prompt, output)),
        penalised_slowly(row, params, prompt, output),
        rtol=1e-6,
        atol=1e-6,
    )


def test_penalties_leave_the_model_s_logits_alone() -> None:
    row = make_logits(1)
    before = row.copy()
    penalised(row, make_sequence(params_of(repetition_penalty=2.0, frequency_penalty=1.0), [1], [2, 2]))
    np.testing.assert_array_equal(row, before)


def test_presence_and_frequency_look_at_the_output_only() -> None:
    row = make_logits(1)
    sequence = make_sequence(params_of(presence_penalty=1.0, frequency_penalty=1.0), [3, 4], [])
    np.testing.assert_array_equal(penalised(row, sequence), row)


def test_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    row, tokens = make_logits(2), [3, 5, 5, 700]
    expected = RepetitionPenaltyLogitsProcessor(1.25)(
        torch.tensor([tokens]), torch.from_numpy(row[None].copy())
    )
    got = penalised(row, make_sequence(params_of(repetition_penalty=1.25), tokens[:2], tokens[2:]))
    np.testing.assert_array_equal(got, expected[0].numpy())


# --- filters: the same tokens and the same distribution as transformers' processors in a row


def filtered_by_transformers(row: np.ndarray, params: SamplingParams) -> np.ndarray:
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k > 0:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        processors.append(MinPLogitsWarper(params.min_p))
    scores = processors(torch.tensor([[0]]), torch.from_numpy(row[None].copy()))
    return torch.softmax(scores, dim=-1)[0].numpy()


@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [-1, 1, 3, 40, 900, 2000])
@pytest.mark.parametrize("top_p", [1.0, 0.97, 0.5, 0.01])
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.6])
def test_filters_are_those_of_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = params_of(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for seed in range(3):
        row = make_logits(seed)
        kept, weights = filtered(row, params)
        got = np.zeros(VOCAB)
        got[kept] = weights / weights.sum()
        expected = filtered_by_transformers(row, params)
        # Below e^-87 a weight is 0 here, and not yet there.
        assert np.flatnonzero(got > 1e-30).tolist() == np.flatnonzero(expected > 1e-30).tolist()
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-8)


def nucleus_slowly(weights: np.ndarray, top_p: float) -> list[int]:
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    total, before, kept = math.fsum(weights), 0.0, []
    for index in order:
        if before >= top_p * total:
            break
        kept.append(index)
        before += float(weights[index])
    return sorted(kept)


@given(
    values=st.lists(st.integers(0, 6), min_size=1, max_size=60),  # few values: many ties
    top_p=st.floats(0.013, 0.987),
)
def test_of_tokens_that_tie_at_the_nucleus_edge_the_first_stay(values: list[int], top_p: float) -> None:
    row = np.log(np.array([2.0**-v for v in values], dtype=np.float32) / np.float32(2.0 ** -min(values)))
    params = params_of(top_p=top_p)
    kept, _ = filtered(row, params)
    weights = np.array([2.0 ** (min(values) - v) for v in values])
    assert kept.tolist() == nucleus_slowly(weights, top_p)


def test_tokens_that_tie_at_the_top_k_edge_all_stay() -> None:
    row = np.zeros(600, dtype=np.float32)
    row[[5, 300]] = 1.0
    kept, _ = filtered(row, params_of(top_k=1))
    assert kept.tolist() == [5, 300]


# --- the draw


@pytest.mark.parametrize(
    "values", [{}, {"temperature": 0.6}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1, "temperature": 1.5}]
)
def test_drawn_tokens_follow_the_distribution(values: dict[str, float]) -> None:
    """Chi-square over 10,000 draws with fixed seeds; 5 standard deviations over its mean would be a bug."""
    params, row, draws = params_of(**values), make_logits(3, 40, 1.5), 10_000
    logits = torch.from_numpy(row[None])
    sequences = (make_sequence(params, seed=seed) for seed in range(draws))
    counts = Counter(sample(logits, [sequence])[0].token_id for sequence in sequences)
    expected = filtered_by_transformers(row, params).astype(np.float64) * draws
    assert set(counts) <= set(np.flatnonzero(expected).tolist())
    likely = np.flatnonzero(expected > 5)
    statistic = sum((counts[i] - expected[i]) ** 2 / expected[i] for i in likely.tolist())
    freedom = len(likely) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_random_numbers_of_one_seed_and_of_neighbouring_seeds_are_uniform() -> None:
    for numbers in ([uniform(7, i) for i in range(20_000)], [uniform(i, 0) for i in range(20_000)]):
        assert all(0 <= number < 1 for number in numbers)
        counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
        assert ((counts - 200) ** 2 / 200).sum() < 99 + 5 * math.sqrt(2 * 99)
        lagged = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
        assert abs(lagged) < 5 / math.sqrt(20_000)


def test_random_numbers_are_those_of_splitmix64() -> None:
    assert uniform(0, 0) == (0xE220A8397B1DCDAF >> 11) / 2**53  # the published first output for state 0
    assert [uniform(0, 1), uniform(2**64 - 1, 5)] == [
        0.43152799704850997,
        0.05588332997080059,
    ]  # ours, pinned


def test_tokens_of_no_weight_are_never_drawn() -> None:
    row = np.full(3000, -np.inf, dtype=np.float32)
    row[[700, 1900]] = [0.0, -1.0]
    logits = torch.from_numpy(row[None])
    drawn = {sample(logits, [make_sequence(params_of(), seed=seed)])[0].token_id for seed in range(200)}
    assert drawn == {700, 1900}


def test_the_smallest_temperatures_draw_the_likeliest() -> None:
    row = make_logits(4, scale=1e4)
    for temperature in (0, 1e-6, 1e-5, 1e-4):
        sampled = sample(torch.from_numpy(row[None]), [make_sequence(params_of(temperature=temperature))])
        assert sampled[0].token_id == row.argmax()


def test_greedy_takes_the_first_of_equals() -> None:
    rows = torch.zeros(5, 301)
    rows[:, [40, 41, 300]] = 2.0
    sampled = sample(rows, [make_sequence(params_of(temperature=0)) for _ in range(5)])
    assert [item.token_id for item in sampled] == [40] * 5


def test_greedy_obeys_penalties() -> None:
    row = torch.tensor([[1.0, 5.0, 4.9]])
    params = params_of(temperature=0, presence_penalty=0.5)
    assert sample(row, [make_sequence(params, [0], [1])])[0].token_id == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_a_clear_error(bad: float, temperature: float) -> None:
    row = torch.from_numpy(make_logits(5)[None].copy())
    row[0, 17] = bad
    with pytest.raises(RequestFailed, match="finite"):
        sample(row, [make_sequence(params_of(temperature=temperature, top_k=5, top_p=0.9))])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_of_no_numbers_changes_no_bit_of_its_neighbours(bad: float) -> None:
    rows = np.stack([make_logits(seed) for seed in range(5)])
    sequences = [make_sequence(params_of(logprobs=3, repetition_penalty=1.2), seed=n) for n in range(5)]
    healthy = sample(torch.from_numpy(rows), sequences)
    poisoned = rows.copy()
    poisoned[2] = bad
    found = HostSampler(POOLS[0]).sample(torch.from_numpy(poisoned), sequences).fetch()
    assert isinstance(found[2], RequestFailed)
    assert [*found[:2], *found[3:]] == [*healthy[:2], *healthy[3:]]


@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-30, 1.0, 1e30, 3e38]),
    penalty=st.floats(0.01, 100.0),
    temperature=st.floats(0.0, FLOAT32_MAX),
    top_p=st.floats(5e-324, 1.0),
    min_p=st.floats(0.0, 1.0),
    logprobs=st.sampled_from([None, 2]),
)
def test_every_allowed_value_gives_a_token_from_any_finite_row(
    seed: int,
    scale: float,
    penalty: float,
    temperature: float,
    top_p: float,
    min_p: float,
    logprobs: int | None,
) -> None:
    """No value overflows float32 into an infinity, and no warning is given (they are errors here)."""
    wide = make_logits(seed, 50, 1.0).astype(np.float64) * scale
    row = np.clip(wide, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
    params = params_of(
        repetition_penalty=penalty, frequency_penalty=2, presence_penalty=-2, temperature=temperature,
        top_p=top_p, min_p=min_p, logprobs=logprobs,
    )  # fmt: skip
    (token,) = sample(torch.from_numpy(row[None]), [make_sequence(params, [1, 2], [3, 3], seed)])
    assert 0 <= token.token_id < 50


# --- logprobs


def test_logprobs_are_the_raw_model_s_best_and_the_chosen_token() -> None:
    row = make_logits(6)
    params = params_of(logprobs=4, temperature=5.0, repetition_penalty=1.5, seed=1)
    (sampled,) = sample(torch.from_numpy(row[None]), [make_sequence(params)])
    raw = torch.log_softmax(torch.from_numpy(row).double(), 0).numpy()
    order = np.argsort(-raw)
    assert sampled.logprobs is not None
    assert list(sampled.logprobs)[:4] == order[:4].tolist()
    assert sampled.token_id in sampled.logprobs
    assert len(sampled.logprobs) == 5
    for token, logprob in sampled.logprobs.items():
        assert logprob.logprob == pytest.approx(raw[token], abs=1e-6)
        assert logprob.rank == 1 + int((raw > raw[token]).sum())


def test_logprobs_0_gives_the_chosen_token_alone() -> None:
    row = make_logits(6)
    (sampled,) = sample(torch.from_numpy(row[None]), [make_sequence(params_of(temperature=0, logprobs=0))])
    assert sampled.logprobs is not None
    assert list(sampled.logprobs) == [int(row.argmax())]
    assert isinstance(sampled.logprobs[sampled.token_id], Logprob)
    assert sampled.logprobs[sampled.token_id].rank == 1


def test_more_logprobs_than_the_vocabulary_gives_them_all() -> None:
    row = make_logits(6, vocab=9)
    (sampled,) = sample(torch.from_numpy(row[None]), [make_sequence(params_of(logprobs=50))])
    assert sampled.logprobs is not None
    assert len(sampled.logprobs) == 9
    assert math.fsum(math.exp(item.logprob) for item in sampled.logprobs.values()) == pytest.approx(1)
