"""Rope tables equal transformers', for every kind of scaling."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from interlace.models.batch import ForwardBatch
from interlace.models.config import RopeConfig
from interlace.models.hf.config import read_hf_config
from interlace.models.rope import Rotations, cos_sin, frequencies
from support.hf_configs import LLAMA

SCALINGS: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "yarn_with_attention_factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "attention_factor": 0.7,
        "beta_fast": 16,
        "beta_slow": 2,
    },
    "yarn_mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 32,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    "yarn_untruncated": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "truncate": False,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 256},
    "longrope_with_factor": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 256,
        "factor": 8.0,
    },
    "longrope_with_attention_factor": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 256,
        "attention_factor": 1.3,
    },
}


def text(*spans: tuple[int, int]) -> ForwardBatch:
    """A batch of the last `n` tokens of a prompt of `length`, for each (length, n)."""
    one = torch.zeros(len(spans), dtype=torch.int32)
    counts = torch.tensor([0, *(n for _, n in spans)], dtype=torch.int32)
    positions = torch.cat([torch.arange(length - n, length, dtype=torch.int32) for length, n in spans])
    lengths = torch.tensor([length for length, _ in spans], dtype=torch.int32)
    starts = counts.cumsum(0, dtype=torch.int32)
    return ForwardBatch(positions, positions, positions, starts, lengths, one[None], one, lengths)


def rotations_of(rotations: Rotations, batch: ForwardBatch) -> torch.Tensor:
    table, rows = rotations.of(batch)
    assert table.dtype == torch.float32
    assert rows.dtype == torch.int32
    return table[rows.long()]


def rope_parameters(scaling: dict[str, Any], head_dim: int, theta: float) -> dict[str, Any]:
    if scaling["rope_type"] != "longrope":
        return {"rope_theta": theta, **scaling}
    ramp = [1.0 + 0.25 * j for j in range(head_dim // 2)]
    return {"rope_theta": theta, "short_factor": ramp[::-1], "long_factor": ramp, **scaling}


def long_rope(kind: str) -> RopeConfig:
    """A scaling that depends on how long a text is: on whether it has more than 64 tokens."""
    scaling = rope_parameters({"rope_type": kind, "original_max_position_embeddings": 64}, 16, 10_000.0)
    hf = {"rope_scaling": {"factor": 4.0, **scaling}, "max_position_embeddings": 64}
    return read_hf_config({**LLAMA, **hf}).rope


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_table_equals_transformers(scaling: dict[str, Any], head_dim: int, theta: float) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    oracle_config = LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        rope_parameters=rope_parameters(scaling, head_dim, theta),
    )
    config = read_hf_config(oracle_config.to_dict())
    rotations = Rotations(config.rope, head_dim, config.max_position)
    oracle = LlamaRotaryEmbedding(oracle_config)
    for length in (255, 256, 257, 1024, 1500):  # of a text, ascending: the oracle remembers the longest
        cos, sin = oracle(torch.zeros(1), torch.arange(length)[None])
        expected = torch.cat([cos[0, :, : head_dim // 2], sin[0, :, : head_dim // 2]], dim=1)
        if length <= config.max_position:
            got = rotations_of(rotations, text((length, length)))
            torch.testing.assert_close(got, expected, rtol=0, atol=2e-4 if length > 1024 else 1e-6)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_rotation_depends_on_its_own_text_alone(kind: str) -> None:
    rotations = Rotations(long_rope(kind), 16, 256)
    whole = {length: rotations_of(rotations, text((length, length))) for length in (10, 64, 65, 200)}
    mixed = rotations_of(rotations, text((200, 7), (64, 64), (65, 1), (10, 3)))
    expected = torch.cat([whole[200][-7:], whole[64], whole[65][-1:], whole[10][-3:]])
    assert torch.equal(mixed, expected)
    assert not torch.equal(whole[65][:64], whole[64])


def test_a_generated_token_has_read_up_to_itself() -> None:
    batch = text((5, 3), (2, 2))
    grown = ForwardBatch(**{**vars(batch), "prompt_lens": torch.tensor([4, 1], dtype=torch.int32)})
    assert batch.text_lengths().tolist() == [5, 5, 5, 2, 2]
    assert grown.text_lengths().tolist() == [4, 4, 5, 1, 2]


def test_a_table_grows_with_the_positions_and_keeps_its_bits() -> None:
    """A context of a million tokens costs what the longest text in it does."""
    rope = RopeConfig(500_000.0, "llama3", factor=8.0, original_max_position=256)
    rotations = Rotations(rope, 64, 1 << 20)
    seen = [rotations.of(text((length, 1)))[0] for length in (1, 5000, 5001, 20_000)]
    assert [len(table) for table in seen] == [4096, 8192, 8192, 20_000]
    expected = cos_sin(torch.arange(20_000), frequencies(rope, 64), rope)
    assert all(torch.equal(table, expected[: len(table)]) for table in seen)


def test_a_table_ends_with_the_context() -> None:
    rotations = Rotations(RopeConfig(10_000.0), 16, 100)
    assert len(rotations.of(text((7, 7)))[0]) == 100


@pytest.mark.parametrize("kind", ["linear", "longrope", "dynamic"])
def test_a_complete_table_never_moves_and_has_the_same_bits(kind: str) -> None:
    """Texts beyond the original context have tables of their own only where each length has its frequencies."""
    rope = RopeConfig(10_000.0, "linear", factor=4.0) if kind == "linear" else long_rope(kind)
    grown, complete = Rotations(rope, 16, 5000), Rotations(rope, 16, 5000)
    complete.complete()
    short = complete.of(text((7, 7)))[0]
    for batch in (text((64, 64), (10, 3)), text((200, 7), (64, 64), (4500, 1)), text((200, 7))):
        table, rows = complete.of(batch)
        assert rows.dtype == torch.int32
        assert torch.equal(table[rows.long()], rotations_of(grown, batch))
        is_of_one_pass = kind == "dynamic" and int(batch.seq_lens.max()) > 64
        assert complete.keeps(table) == (not is_of_one_pass)
        assert (table is short) == (not is_of_one_pass)


@pytest.mark.parametrize("kind", ["linear", "longrope", "dynamic"])
def test_prompts_are_of_one_length_kind_if_their_texts_are_rotated_alike(kind: str) -> None:
    """The generated tokens behind them too."""
    rope = RopeConfig(10_000.0, "linear", factor=4.0) if kind == "linear" else long_rope(kind)
    config = replace(read_hf_config(LLAMA), rope=rope)
    rotations, whole = Rotations(rope, 16, 256), ForwardBatch.prefill(120, 1)
    texts = {n: replace(whole, prompt_lens=torch.tensor([n])) for n in (20, 64, 65, 66, 100)}
    tables = {n: rotations_of(rotations, text) for n, text in texts.items()}
    for one, other in combinations(texts, 2):
        is_alike = torch.equal(tables[one], tables[other])
        assert (config.length_kind(one) == config.length_kind(other)) == is_alike, (one, other)


def test_divisors_divide_each_frequency() -> None:
    """The way GGUF files carry Llama 3.1's scaling gives the same table as the formula."""
    llama3 = RopeConfig(500_000.0, "llama3", factor=8.0, original_max_position=256)
    divisors = frequencies(RopeConfig(500_000.0), 64) / frequencies(llama3, 64)
    by_divisors = RopeConfig(500_000.0, divisors=tuple(divisors.tolist()))
    tables = [Rotations(rope, 64, 300).table(300) for rope in (by_divisors, llama3)]
    torch.testing.assert_close(*tables, rtol=0, atol=1e-4)
