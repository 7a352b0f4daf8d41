"""Batches: the arrays of a pass, worked out here token by token; passes of single tokens are built in their own way."""

from __future__ import annotations

from dataclasses import fields

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given

from interlace.engine.batch_builder import build_batch
from interlace.engine.sampling_params import SamplingParams
from interlace.engine.scheduler import Scheduled
from interlace.engine.sequence import Sequence
from interlace.models.batch import ForwardBatch
from tokenweave.kernels import blocks_for

MAX_LEN = 70


def sequence_of(seed: int, num_prompt: int, num_output: int, num_uncomputed: int) -> Sequence:
    """A sequence with blocks for all its tokens, anywhere in the cache."""
    random = np.random.default_rng(seed)
    prompt = random.integers(0, 1000, num_prompt).tolist()
    sequence = Sequence(f"r{seed}", prompt, SamplingParams(max_tokens=None), 0, MAX_LEN)
    for token in random.integers(0, 1000, num_output).tolist():
        sequence.append_token(token)
    sequence.table.extend(random.permutation(900)[: blocks_for(sequence.num_tokens)].tolist())
    sequence.num_computed = sequence.num_tokens - min(num_uncomputed, sequence.num_tokens)
    return sequence


def expected(scheduled: list[Scheduled]) -> dict[str, list[int] | list[list[int]]]:
    """The arrays of a batch, one token after another."""
    arrays: dict[str, list[int]] = {
        name: [] for name in ("token_ids", "positions", "slots", "seq_lens", "logit_rows", "prompt_lens")
    }
    query_start, tables = [0], []
    for sequence, _, num_new in scheduled:
        blocks = sequence.table.blocks.tolist()
        for position in range(sequence.num_computed, sequence.num_computed + num_new):
            arrays["token_ids"].append(int(sequence.tokens[position]))
            arrays["positions"].append(position)
            arrays["slots"].append(blocks[position // 16] * 16 + position % 16)
        query_start.append(len(arrays["token_ids"]))
        arrays["seq_lens"].append(sequence.num_computed + num_new)
        arrays["prompt_lens"].append(sequence.num_prompt)
        if sequence.num_computed + num_new == sequence.num_tokens:
            arrays["logit_rows"].append(len(arrays["token_ids"]) - 1)
        tables.append(blocks[: blocks_for(arrays["seq_lens"][-1])])
    width = max(map(len, tables))
    padded = [table + [0] * (width - len(table)) for table in tables]
    return {**arrays, "query_start": query_start, "block_tables": padded}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 99),
            st.integers(1, 30),
            st.integers(0, 30),
            st.sampled_from([1, 1, 1, 2, 40]),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_batch_has_what_its_sequences_have(
    drawn: list[tuple[int, int, int, int, bool]],
) -> None:
    scheduled = []
    for seed, num_prompt, num_output, num_uncomputed, is_cut in drawn:
        sequence = sequence_of(seed, num_prompt, num_output, num_uncomputed)
        num_new = 1 if is_cut else sequence.num_uncomputed
        scheduled.append(Scheduled(sequence, sequence.num_computed, num_new))
    batch = build_batch(scheduled)
    wanted = expected(scheduled)
    assert {field.name for field in fields(ForwardBatch)} == {*wanted, "split", "moves"}
    for name, values in wanted.items():
        tensor = getattr(batch, name)
        assert tensor.dtype is torch.int32
        assert tensor.is_contiguous()
        assert tensor.tolist() == values, name
