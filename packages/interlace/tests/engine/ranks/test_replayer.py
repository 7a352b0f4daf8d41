"""Replayed = sequential: the same bits, whatever the family, the number of ranks and the batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from interlace import LLM, SamplingParams
from interlace.engine.cache import tiers
from interlace.engine.config import EngineConfig
from interlace.engine.ranks import replayer
from interlace.engine.ranks.launch import start
from interlace.errors import RankFailed
from support.driver import Driver
from support.replay_programs import Outcome, decode_on_ranks
from support.tiny_models import FAMILIES, make_model

# Why a family's passes are not captured: experts are chosen in torch, and norms over all heads are joined there.
TORCH = {"mixtral": "softmax", "qwen2_moe": "softmax", "qwen3_moe": "softmax", "olmo2": "aten.cat"}
SIZES = (1, 4, 4, 4, 5, 5, 5, 1, 1, 5, 5, 4, 5, 1, 4, 5)


def decode(
    kind: str,
    size: int,
    model: Path,
    replaying: Sequence[int],
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    kernels: str = "native",
) -> list[Outcome]:
    return decode_on_ranks(kind, size, kernels, model, sizes, replaying, seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_with_the_same_bits(family: str, tmp_path: Path) -> None:
    model = make_model(tmp_path, family)
    [(expected, none, _)] = decode("null", 1, model, [])
    [(got, replayed, refusal)] = decode("null", 1, model, [0])
    assert torch.equal(got, expected)
    assert none == 0
    if family in TORCH:
        assert refusal is not None
        assert TORCH[family] in refusal
        assert replayed == 0
    else:
        assert refusal is None
        assert replayed == len(SIZES) - 6  # each of three sizes ran once as it is and once to be captured


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("replaying", [[0, 1, 2], [1]], ids=["all", "one"])
@pytest.mark.parametrize("family", ["llama_9_heads", "gemma2"])
def test_ranks_over_shared_memory_replay_with_the_same_bits(
    family: str, replaying: list[int], size: int, tmp_path: Path
) -> None:
    """Also beside ranks that do not: they meet in the same collectives, over the same buffers."""
    model = make_model(tmp_path, family)
    expected = decode("shm-symmetric-threads", size, model, [])
    got = decode("shm-symmetric-threads", size, model, replaying)
    assert torch.equal(got[0][0], expected[0][0])
    for rank, (_, replayed, refusal) in enumerate(got):
        assert refusal is None
        assert (replayed > 0) == (rank in replaying)


def test_passes_of_kernels_in_torch_are_not_captured(tmp_path: Path) -> None:
    [(_, replayed, refusal)] = decode("null", 1, make_model(tmp_path), [0], SIZES[:4], kernels="reference")
    assert (replayed, refusal) == (0, "the kernels or the communicator run in Python")


def tokens(model: Path, **options: object) -> list[list[int]]:
    """Prompts of which one ends after the other, so that the batch has a new size at every few steps."""
    with LLM(str(model), dtype="float32", num_kv_blocks=64, threads=1, **options) as llm:
        params = [SamplingParams(max_tokens=3 + 4 * n, temperature=0.8, seed=n) for n in range(5)]
        outputs = llm.generate([[n + 1] * (3 + n) for n in range(5)], params)
        return [list(output.outputs[0].token_ids) for output in outputs]


def test_an_engine_gives_the_same_tokens_with_and_without(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    assert tokens(model) == tokens(model, replay=False)


def test_passes_that_store_blocks_in_a_tier_are_replayed_as_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests fill a block each, which go down at the same pass."""
    monkeypatch.setattr(tiers, "MOST_WAITING", 2)
    model = make_model(tmp_path)
    counts = []
    for kv_tiers in ((), ("dram:1MiB",)):
        with LLM(str(model), num_kv_blocks=32, threads=1, kv_tiers=kv_tiers) as llm:
            params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
            answers = [output.token_ids for output in llm.generate([[1, 2, 3], [4, 5, 6]], params)]
            runner = llm._ranks.runner
            counts.append((answers, runner.replayer.num_replayed))
            stored = [tier.written_bytes // runner.mover.block_bytes for tier in llm.stats().tiers]
    assert counts[0] == counts[1]
    assert counts[0][1] > 40
    assert stored == [6]


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_weights_in_blocks_are_replayed_with_the_same_tokens(quantize: str, tmp_path: Path) -> None:
    model = make_model(tmp_path, intermediate_size=128)
    assert tokens(model, quantize=quantize) == tokens(model, quantize=quantize, replay=False)
    group = start(EngineConfig(str(model), num_kv_blocks=16, threads=1, quantize=quantize))
    try:
        driver = Driver(group, [list(range(9))])
        for _ in range(4):
            driver.run([(0, 1)])
        assert group.runner.replayer is not None
        assert group.runner.replayer.num_replayed > 0
    finally:
        group.close()


def test_an_aborted_group_says_so_and_gives_no_stale_answer(tmp_path: Path) -> None:
    group = start(EngineConfig(str(make_model(tmp_path)), num_kv_blocks=16, threads=1))
    try:
        driver = Driver(group, [list(range(9))])
        for _ in range(8):
            driver.run([(0, 1)])
        assert group.runner.replayer is not None
        assert group.runner.replayer.num_replayed > 0
        group.runner.communicator.abort("enough")
        with pytest.raises(RankFailed, match="enough"):
            driver.run([(0, 1)])
    finally:
        group.close()


def test_the_captures_that_are_kept_are_bounded(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    sizes = (1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 3, 3)
    [(expected, _, _)] = decode("null", 1, model, [], sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replayer, "MAX_CAPTURES", 2)
        [(got, replayed, _)] = decode("null", 1, model, [0], sizes)
    assert torch.equal(got, expected)
    # Each size was captured, forgotten for the third, captured again, and replayed once then.
    assert replayed == 3
