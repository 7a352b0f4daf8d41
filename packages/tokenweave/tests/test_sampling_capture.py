"""On its way to the fetch the device's sampler never waits, and a CUDA graph could be made of what it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from support.device_sampling import (
    EVERYTHING,
    VOCAB_SIZE,
    logits_of,
    row_of,
    rows_of,
    slots_of,
)
from support.operations import WAITING, Operations
from tokenweave.sampling import DeviceSampler, SamplingRow, reference_sample
from tokenweave.sampling.device import DeviceSampled, Features, rules, search


def operations_of(device: DeviceSampler, rows: list[SamplingRow], logits: torch.Tensor) -> Operations:
    features = device.prepare(rows, slots_of(device, rows), len(rows))
    with Operations() as operations:
        device.compute(logits, features)
    return operations


def each_and_all() -> Iterator[list[SamplingRow]]:
    yield from ([row] for row in rows_of())
    yield rows_of()


def test_nothing_on_the_way_waits_for_the_device() -> None:
    for rows in each_and_all():
        device = DeviceSampler(VOCAB_SIZE, len(rows), len(rows))
        slots = slots_of(device, rows)
        with Operations() as operations:
            device.sample(logits_of(0, len(rows)), rows, slots)
        assert operations.taken
        assert not operations.names & WAITING


def test_the_watch_sees_what_waits() -> None:
    found = torch.tensor([0, 2, 0])
    for wait in (
        lambda: found[0].item(),
        lambda: bool(found[0] == 0),
        lambda: found[found > 0],
        lambda: found.nonzero(),
        lambda: found.unique(),
        lambda: torch.where(found > 0),
    ):
        with Operations() as operations:
            wait()
        assert operations.names & WAITING


def test_a_pass_runs_on_tensors_that_have_no_numbers() -> None:
    """On the device `meta` whatever asked for a number would raise: from the copy there to all but the way back."""
    for rows in each_and_all():
        device = DeviceSampler(VOCAB_SIZE, len(rows), len(rows), "meta")
        features = device.prepare(rows, slots_of(device, rows), len(rows))
        found = device.compute(torch.empty(len(rows), VOCAB_SIZE, device="meta"), features)
        assert found.is_meta
        columns = 2 if features.max_logprobs is None else 5 + 2 * features.max_logprobs
        assert found.shape == (len(rows), columns)


@pytest.mark.parametrize("values", EVERYTHING)
def test_the_operations_and_their_shapes_depend_on_the_features_alone(values: dict[str, float]) -> None:
    """So those of one batch, captured, are those of any other that has the same."""
    few = [row_of([1, 2], 1, 0, **values)] * 2
    many = [row_of(list(range(40)), 7, 99, **{**values, **({"top_k": 3} if "top_k" in values else {})})] * 2
    assert Features.of(few, VOCAB_SIZE) == Features.of(many, VOCAB_SIZE)
    taken = [
        operations_of(DeviceSampler(VOCAB_SIZE, 2, 2), rows, logits_of(seed, 2)).taken
        for seed, rows in enumerate((few, many))
    ]
    assert taken[0] == taken[1]


def test_what_a_pass_reads_never_moves() -> None:
    """A replay of a captured pass finds what was prepared for it: here the same operations, on the same tensors."""
    device = DeviceSampler(VOCAB_SIZE, len(EVERYTHING), 2 * len(EVERYTHING))
    logits = logits_of(0, len(EVERYTHING))
    features = device.prepare(rows_of(), slots_of(device, rows_of()), len(EVERYTHING))
    with Operations() as captured:
        device.compute(logits, features)
    for seed in range(1, 4):
        logits.copy_(logits_of(seed, len(EVERYTHING)))
        rows = rows_of(seed)
        for slot in range(2):
            device.slots.remove(slot)
        assert device.prepare(rows, slots_of(device, rows), len(EVERYTHING)) == features
        with Operations() as replayed:
            found = device.compute(logits, features)
        assert replayed.taken == captured.taken
        assert DeviceSampled(found, rows).fetch().rows == reference_sample(logits, rows)


def test_features_that_no_row_asks_for_change_no_token() -> None:
    """So a few captured passes serve many kinds of batches."""
    everything = Features(True, True, True, True, True, 16)
    for rows in each_and_all():
        device = DeviceSampler(VOCAB_SIZE, len(rows), len(rows))
        logits = logits_of(8, len(rows))
        device.prepare(rows, slots_of(device, rows), len(rows))
        sampled = DeviceSampled(device.compute(logits, everything), rows)
        assert sampled.fetch().rows == reference_sample(logits, rows)


def test_greedy_rows_take_the_largest_and_nothing_more() -> None:
    """Filters that greedy rows name change nothing, and cost nothing."""
    rows = [row_of([1], 1, 0, temperature=0.0, top_k=4, top_p=0.5, min_p=0.1)] * 4
    operations = operations_of(DeviceSampler(VOCAB_SIZE, 4, 0), rows, logits_of(0, 4))
    large = [name for name, shapes in operations.taken if (4, VOCAB_SIZE) in shapes]
    assert set(large) <= {"split", "slice"}
    assert "max" in operations.names


def test_no_row_is_sorted_and_rows_without_top_k_and_top_p_are_not_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched: list[int] = []

    def search_in(*arguments: Any, **named: Any) -> torch.Tensor:
        searched.append(1)
        return search.largest_holding(*arguments, **named)

    monkeypatch.setattr(rules, "largest_holding", search_in)
    for rows in each_and_all():
        searched.clear()
        device = DeviceSampler(VOCAB_SIZE, len(rows), len(rows))
        assert not operations_of(device, rows, logits_of(0, len(rows))).names & {"sort", "argsort"}
        is_filtered = [any(row.top_k > 0 for row in rows), any(row.top_p < 1 for row in rows)]
        assert len(searched) == sum(is_filtered)


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [([None, 0], 0), ([1], 1), ([2, 3], 4), ([200], 256), ([600], 700), ([None], None)],
)
def test_log_probabilities_come_in_few_sizes(logprobs: list[int | None], expected: int | None) -> None:
    rows = [row_of([1], 1, 0, logprobs=number) for number in logprobs]  # type: ignore[arg-type]
    assert Features.of(rows, VOCAB_SIZE).max_logprobs == expected
