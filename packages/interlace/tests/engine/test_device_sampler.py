"""Sampling on a device gives what sampling on the host gives, whichever sequences come and go."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlace.engine.device_sampler import SamplerOnDevice
from interlace.engine.sampler import HostSampler, SampledToken
from interlace.engine.sampling_params import SamplingParams
from interlace.engine.sequence import Sequence
from interlace.errors import RequestFailed

VOCAB = 50
CPU = torch.device("cpu")
PENALISED = SamplingParams(repetition_penalty=1.8, presence_penalty=0.5, seed=3, max_tokens=None)


def make_sequence(params: SamplingParams, first: int = 1) -> Sequence:
    return Sequence("r", [first, 2, 3], params, params.seed or 0, 64)


def logits_of(num_rows: int, seed: int) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_normal((num_rows, VOCAB)) * 3
    return torch.from_numpy(values.astype(np.float32))


@given(batches=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=2, unique=True), max_size=12))
def test_penalised_sequences_may_be_more_than_slots(batches: list[list[int]]) -> None:
    """Two at once have slots, of five that take turns: one that was left out comes back with all its tokens."""
    on_device = SamplerOnDevice(VOCAB, 2, CPU)
    sequences = [make_sequence(PENALISED, first) for first in range(5)]
    for step, indices in enumerate(batches):
        batch, logits = [sequences[index] for index in indices], logits_of(len(indices), step)
        found = on_device.sample(logits, batch).fetch()
        assert found == HostSampler().sample(logits, batch).fetch()
        for sequence, token in zip(batch, found, strict=True):
            assert isinstance(token, SampledToken)
            sequence.append_token(token.token_id)


def test_a_sequence_that_ended_leaves_its_slot() -> None:
    on_device = SamplerOnDevice(VOCAB, 1, CPU)
    for step in range(3):
        sequence = make_sequence(PENALISED)
        on_device.sample(logits_of(1, step), [sequence])
        on_device.forget(sequence)
    on_device.forget(make_sequence(SamplingParams()))  # one that never had a slot
    assert on_device.sample(logits_of(0, 0), []).fetch() == []


def test_logprobs_are_those_of_the_host() -> None:
    on_device, logits = SamplerOnDevice(VOCAB, 3, CPU), logits_of(3, 1)
    batch = [
        make_sequence(SamplingParams(seed=seed, logprobs=count)) for seed, count in enumerate((4, 0, None))
    ]
    found, expected = on_device.sample(logits, batch).fetch(), HostSampler().sample(logits, batch).fetch()
    for own, others in zip(found, expected, strict=True):
        assert isinstance(own, SampledToken)
        assert isinstance(others, SampledToken)
        assert own.token_id == others.token_id
        own_logprobs, logprobs = own.logprobs or {}, others.logprobs or {}
        assert list(own_logprobs) == list(logprobs)
        assert [at.rank for at in own_logprobs.values()] == [at.rank for at in logprobs.values()]
        assert [at.logprob for at in own_logprobs.values()] == pytest.approx(
            [at.logprob for at in logprobs.values()]
        )


def test_a_row_without_a_token_fails_alone() -> None:
    on_device, logits = SamplerOnDevice(VOCAB, 2, CPU), logits_of(2, 1)
    logits[0] = math.nan
    failed, good = on_device.sample(logits, [make_sequence(SamplingParams(seed=1))] * 2).fetch()
    assert isinstance(failed, RequestFailed)
    assert "expected a finite number" in str(failed)
    assert isinstance(good, SampledToken)
