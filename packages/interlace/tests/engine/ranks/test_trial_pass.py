"""A trial pass finds out how much of a GPU a pass takes, and a GPU that is too small is told with figures."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.runner import Runner
from interlace.engine.ranks.trial_pass import bytes_of_a_pass, peak_bytes, run_widest, told_of_device
from interlace.errors import EngineError
from interlace.models.shard import Shard
from interlace.models.sources import load_model
from support.tiny_models import VOCAB_SIZE, make_model
from tokenweave.communicators import NullCommunicator
from tokenweave.kernels import ReferenceKernels

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(("num_tokens", "num_seqs"), [(40, 3), (5, 64), (1, 1)])
def test_the_widest_pass_has_all_tokens_and_the_logits_of_all_sequences(
    tmp_path: Path, num_tokens: int, num_seqs: int
) -> None:
    directory = make_model(tmp_path)
    config = EngineConfig(str(directory), communicator="null", num_kv_blocks=1, dtype="float32")
    with closing(
        Runner(config, load_model(str(directory)), NullCommunicator(kernels=ReferenceKernels()))
    ) as runner:
        logits = run_widest(runner.decoder, runner.cache.tensor, num_tokens, num_seqs)
        assert logits.shape == (min(num_tokens, num_seqs), VOCAB_SIZE)
        assert logits.isfinite().all()
        layout = None  # unused on the CPU, where nothing is run
        assert bytes_of_a_pass(runner.decoder, layout, num_tokens, num_seqs) == 0  # type: ignore[arg-type]


def test_no_sequence_of_the_widest_pass_is_longer_than_the_context(tmp_path: Path) -> None:
    directory = make_model(tmp_path)
    config = EngineConfig(
        str(directory), communicator="null", num_kv_blocks=1, dtype="float32", max_model_len=20
    )
    with closing(
        Runner(config, load_model(str(directory)), NullCommunicator(kernels=ReferenceKernels()))
    ) as runner:
        logits = run_widest(runner.decoder, runner.cache.tensor, num_tokens=64, num_seqs=2)
        assert logits.shape == (2, VOCAB_SIZE)


def test_a_peak_is_what_was_taken_beyond_what_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"memory_allocated": 100, "max_memory_allocated": 170}
    calls: list[str] = []
    for name in ("memory_allocated", "reset_peak_memory_stats", "synchronize", "max_memory_allocated"):
        monkeypatch.setattr(
            torch.cuda, name, lambda device, name=name: (calls.append(name), told.get(name))[1]
        )
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    assert peak_bytes(lambda: calls.append("run"), GPU) == 70
    assert calls == [
        "memory_allocated",
        "reset_peak_memory_stats",
        "run",
        "synchronize",
        "max_memory_allocated",
        "empty_cache",
    ]


def test_weights_without_room_are_told_in_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_210_000_000, 80_000_000_000))
    weights = load_model(str(make_model(tmp_path))).weights
    shard = Shard.of(weights.config, 0, 1)
    with (
        pytest.raises(
            EngineError, match=r"cuda:0 has no room .* 0\.00 GB; 3\.21 GB are free .*raise tp, or quantize"
        ),
        told_of_device(GPU, weights, shard, torch.bfloat16, "none"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
