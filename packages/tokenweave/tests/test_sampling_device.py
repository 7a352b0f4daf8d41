"""The device's sampler beyond what all samplers must do: its arithmetic, step after step, padded and in parts."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from support.device_sampling import (
    EVERYTHING,
    PENALTIES,
    VOCAB_SIZE,
    device_sample,
    logits_of,
    row_of,
    rows_of,
    slots_of,
)
from tokenweave.errors import KernelError
from tokenweave.sampling import DeviceSampler, SamplingRow, reference, reference_sample
from tokenweave.sampling.device import DeviceSampled, arithmetic, sampler, search

# --- the arithmetic, bit for bit


@given(values=st.lists(st.integers(0, 2**64 - 1), min_size=1), index=st.integers(0, 2**40))
def test_random_numbers_in_int64_have_the_bits_of_uint64(values: list[int], index: int) -> None:
    seeds = torch.from_numpy(np.array(values, np.uint64).view(np.int64))
    mixed = arithmetic.mix64(seeds).numpy().view(np.uint64)
    assert mixed.tolist() == [reference.mix64(value) for value in values]
    numbers = arithmetic.uniform(seeds, torch.full_like(seeds, index))
    assert numbers.tolist() == [reference.uniform(value, index) for value in values]


def test_weights_and_masses_have_the_bits_of_the_reference() -> None:
    edges = [-np.inf, -3e38, -87.0, np.nextafter(np.float32(-87), np.float32(-100)), -1e-40, -0.0, 0.0]
    x = np.concatenate([np.linspace(-90, 0, 300_001), edges]).astype(np.float32)
    weights = arithmetic.exp_of_negative(torch.from_numpy(x))
    assert weights.numpy().tobytes() == reference.exp_of_negative(x).tobytes()
    for vocab_size in (1, 1000, 151_936):
        expected = reference.masses(weights.numpy(), vocab_size)
        assert arithmetic.masses(weights, vocab_size).tolist() == expected.tolist()


@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_floats_order_as_the_integers_made_of_them(values: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    order = arithmetic.ordered(scores)
    assert scores[order.argsort()].tolist() == sorted(scores.tolist())
    assert arithmetic.scores_of(order).numpy().tobytes() == scores.numpy().tobytes()


# --- searches


@given(
    amounts=st.lists(st.integers(0, 3), min_size=1, max_size=700),
    target=st.one_of(st.integers(-1, 900), st.floats(0, 900)),
)
def test_the_first_that_passes_is_that_of_a_running_sum(amounts: list[int], target: float) -> None:
    running = np.cumsum(amounts)
    expected = min(int(np.searchsorted(running, target, side="right")), len(amounts) - 1)
    found = search.first_passing(
        torch.tensor([amounts, amounts]), torch.tensor([target, 1e9], dtype=torch.float64)
    )
    assert found.tolist() == [expected, len(amounts) - 1]


@pytest.mark.parametrize("max_compared", [0, 8 << 2, 8 << 4])
@given(limits=st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2))
def test_the_largest_number_that_holds_is_found_by_rounds_of_1_2_or_4_bits(
    max_compared: int, limits: list[int]
) -> None:
    asked: list[int] = []

    def holds(candidates: torch.Tensor) -> torch.Tensor:
        asked.append(candidates.shape[1])
        return candidates <= torch.tensor(limits)[:, None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MAX_COMPARED", max_compared)
        found = search.largest_holding(holds, torch.zeros(2, 4), 32)
    assert found.tolist() == limits
    bits = {0: 1, 8 << 2: 2, 8 << 4: 4}[max_compared]
    assert asked == [2**bits - 1] * (32 // bits)


@pytest.mark.parametrize("max_compared", [0, len(EVERYTHING) * VOCAB_SIZE << 2, 1 << 30])
def test_the_width_of_a_search_changes_no_token(max_compared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_COMPARED", max_compared)
    logits = logits_of(1, len(EVERYTHING))
    assert device_sample(logits, rows_of()) == reference_sample(logits, rows_of())


# --- sequences, step after step


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    penalties=st.lists(
        st.sampled_from([{}, PENALTIES, {"repetition_penalty": 0.8}, {"presence_penalty": 1.5}]),
        min_size=1,
        max_size=4,
    ),
    events=st.lists(st.sampled_from(["step", "step", "preempt", "end", "pause"]), min_size=1, max_size=12),
)
def test_tokens_that_the_device_notes_count_as_those_of_the_whole_history(
    seed: int, penalties: list[dict[str, float]], events: list[str]
) -> None:
    """Few tokens, so that the same come again; slots that were others' are taken again."""
    random = np.random.default_rng(seed)
    device = DeviceSampler(12, len(penalties), len(penalties))
    histories = [random.integers(0, 12, size=4).tolist() for _ in penalties]

    def rows() -> list[SamplingRow]:
        return [row_of(history, 3, place, **penalties[place]) for place, history in enumerate(histories)]

    slots = slots_of(device, rows())
    for step, event in enumerate(events):
        place = step % len(slots)
        if event in ("preempt", "end"):
            slot = slots[place]
            if slot is not None:
                device.slots.remove(slot)
            if event == "end":
                histories[place] = random.integers(0, 12, size=3).tolist()
            slots[place] = slots_of(device, [rows()[place]])[0]
        # A sequence that is computed anew takes no part for a step, and keeps its slot.
        present = [other for other in range(len(slots)) if event != "pause" or other != place]
        now = [rows()[other] for other in present]
        logits = logits_of(seed + step, len(now), 12)
        sampled = device.sample(logits, now, [slots[other] for other in present]).fetch().rows
        assert sampled == reference_sample(logits, now)
        for other, row in zip(present, sampled, strict=True):
            assert row.token is not None
            histories[other].append(row.token)


def test_a_row_of_no_numbers_notes_no_token() -> None:
    device = DeviceSampler(4, 1, 1)
    row = row_of([1], 1, 0, temperature=0.0, presence_penalty=2.0)
    (slot,) = slots_of(device, [row])
    sampled = device.sample(torch.full((1, 4), float("nan")), [row], [slot])
    assert sampled.tokens.tolist() == [-1]
    assert device.slots.rows(torch.tensor([0])).tolist() == [[0, 1, 0, 0]]


# --- slots


def test_a_slot_must_be_free_to_be_added_and_taken_to_be_removed() -> None:
    slots = DeviceSampler(9, 1, 1).slots
    slot = slots.add(np.array([8], np.int32), 1)
    with pytest.raises(KernelError, match="all 1 slots are taken"):
        slots.add(np.array([8], np.int32), 1)
    slots.remove(slot)
    for wrong in (slot, -1, 1):
        with pytest.raises(KernelError, match="is not taken"):
            slots.remove(wrong)
    assert slots.add(np.array([], np.int32), 0) == slot


def test_a_slot_that_cannot_be_the_row_s_is_refused() -> None:
    """It has other tokens than the row, or none, or there is no such slot."""
    device = DeviceSampler(9, 2, 2)
    row = row_of([3, 4], 1, 0, repetition_penalty=2.0)
    slot = device.slots.add(row.tokens, 1)
    longer = row._replace(tokens=np.array([3, 4, 5], np.int32))
    for wrong_row, wrong_slot in [(row, None), (row, 1), (row, 2), (row, -1), (longer, slot)]:
        with pytest.raises(KernelError, match=r"with penalties came with the slot .*`slots.add`"):
            device.sample(torch.zeros(1, 9), [wrong_row], [wrong_slot])
    device.sample(torch.zeros(1, 9), [row], [slot])
    with pytest.raises(KernelError, match="a row of 2 tokens"):  # the device noted a third
        device.sample(torch.zeros(1, 9), [row], [slot])


def test_rows_and_slots_that_do_not_fit_are_refused() -> None:
    device = DeviceSampler(9, 2, 0)
    row = row_of([3], 1, 0)
    for rows, slots in [([row] * 3, [None] * 3), ([row], []), ([row], [None, None])]:
        with pytest.raises(KernelError, match="at most 2 rows"):
            device.sample(torch.zeros(len(rows), 9), rows, slots)
    with pytest.raises(KernelError, match="padded to 1"):
        device.prepare([row, row], [None, None], 1)
    with pytest.raises(KernelError, match="numbers that a float32 holds"):
        device.prepare([row._replace(temperature=1e39)], [None], 1)


# --- what comes back


def test_the_logits_of_the_likeliest_and_of_the_token_come_back_where_they_are_asked_for() -> None:
    logits = logits_of(3, len(EVERYTHING))
    device = DeviceSampler(VOCAB_SIZE, len(EVERYTHING), 2)
    fetched = device.sample(logits, rows_of(), slots_of(device, rows_of())).fetch()
    for place, (row, named) in enumerate(zip(fetched.rows, fetched.logits, strict=True)):
        names = {*row.likeliest, row.token} if rows_of()[place].logprobs is not None else set()
        assert named == {token: logits[place, token].item() for token in names}
    assert [len(row.likeliest) for row in fetched.rows] == [0, 0, 0, 0, 0, 3, 0, 5]


def test_tokens_stay_on_the_device_for_the_next_pass() -> None:
    logits = logits_of(4, 3)
    rows = [row_of([1], 1, seed) for seed in range(3)]
    sampled = DeviceSampler(VOCAB_SIZE, 3, 0).sample(logits, rows, [None] * 3)
    assert sampled.tokens.dtype == torch.int64
    assert sampled.tokens.tolist() == [row.token for row in reference_sample(logits, rows)]


# --- parts, padding and strides


def test_a_pass_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "MAX_AT_ONCE", 3 * VOCAB_SIZE)
    logits = logits_of(5, len(EVERYTHING))
    assert device_sample(logits, rows_of()) == reference_sample(logits, rows_of())


def test_logits_may_be_a_part_of_a_wider_matrix() -> None:
    logits = logits_of(6, len(EVERYTHING), VOCAB_SIZE + 5)[:, 2:-3]
    assert device_sample(logits, rows_of()) == reference_sample(logits.contiguous(), rows_of())


def test_padding_changes_no_row_and_gives_none() -> None:
    """Also not where the logits of the padding are no numbers."""
    logits = torch.full((len(EVERYTHING) + 3, VOCAB_SIZE), float("nan"))
    logits[:-3] = logits_of(7, len(EVERYTHING))
    device = DeviceSampler(VOCAB_SIZE, len(logits) + 2, 2)
    features = device.prepare(rows_of(), slots_of(device, rows_of()), len(logits))
    sampled = DeviceSampled(device.compute(logits, features), rows_of())
    assert sampled.tokens.shape == (len(logits),)
    assert sampled.fetch().rows == reference_sample(logits[:-3], rows_of())
