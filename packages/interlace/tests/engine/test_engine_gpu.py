"""The engine on a GPU: its tokens are those of the engine on the CPU, and its host waits for nothing but them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interlace import LLM, SamplingParams
from interlace.engine.config import EngineConfig
from interlace.engine.ranks.launch import start
from interlace.errors import EngineError
from interlace.models.batch import ForwardBatch
from support.tiny_models import VOCAB_SIZE, make_model
from tokenweave.communicators.available import symm_mem_reason
from tokenweave.kernels.cuda.available import unavailable_reason

reason = unavailable_reason()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(reason is not None, reason=f"cuda kernels: {reason}")]

PROMPTS = [[(7 * i + 3 * p) % VOCAB_SIZE for i in range(length)] for p, length in enumerate((5, 40, 17, 1))]
NUM_TOKENS = 24
GREEDY = [SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)] * len(PROMPTS)
DRAWN = [
    SamplingParams(temperature=0.8, top_p=0.9, top_k=40, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True),
    SamplingParams(temperature=1.0, min_p=0.02, seed=6, max_tokens=NUM_TOKENS, ignore_eos=True),
    SamplingParams(
        repetition_penalty=1.3, presence_penalty=0.4, seed=7, max_tokens=NUM_TOKENS, ignore_eos=True
    ),
    GREEDY[0],
]


def tokens_of(directory: Path, params: list[SamplingParams], **options: Any) -> list[list[int]]:
    with LLM(str(directory), dtype="float32", **options) as llm:
        return [output.token_ids for output in llm.generate(PROMPTS, params)]


@pytest.mark.parametrize("family", ["llama_untied", "llama_5_heads", "qwen3", "mixtral", "gemma3"])
def test_tokens_are_those_of_the_cpu(family: str, tmp_path: Path) -> None:
    directory = make_model(tmp_path, family)
    expected = tokens_of(directory, GREEDY, device="cpu", kernels="reference")
    assert tokens_of(directory, GREEDY, device="cuda") == expected


@pytest.mark.parametrize(
    "options",
    [{"max_num_seqs": 4, "max_num_batched_tokens": 16}, {"num_kv_blocks": 6}, {"replay": False}],
    ids=["prompts in pieces", "preempted", "step by step"],
)
def test_drawn_and_penalised_tokens_are_those_of_the_cpu(options: dict[str, Any], tmp_path: Path) -> None:
    directory = make_model(tmp_path)
    expected = tokens_of(directory, DRAWN, device="cpu", kernels="reference")
    assert tokens_of(directory, DRAWN, device="cuda", **options) == expected


@pytest.mark.parametrize("split", [None, 21])
def test_passes_in_graphs_have_the_logits_of_passes_step_by_step(split: int | None, tmp_path: Path) -> None:
    """Woven on two streams too, of one rank. What decodes is captured beforehand, a prompt when it comes again."""
    directory = make_model(tmp_path, "qwen3")
    prompt, token = ForwardBatch.prefill(40, VOCAB_SIZE), ForwardBatch.prefill(1, VOCAB_SIZE)
    batches = [replace(prompt, split=split)] * 3 + [token] * 2

    def logits_of(replay: bool) -> tuple[torch.Tensor, int | None]:
        options: Any = {"dtype": "float32", "num_kv_blocks": 16, "max_num_seqs": 4, "replay": replay}
        group = start(EngineConfig(str(directory), device="cuda", **options))
        try:
            logits = torch.cat([group.execute(batch).clone() for batch in batches])
            graphs = group.runner.graphs
            return logits, None if graphs is None else graphs.num_replayed
        finally:
            group.close()

    expected, none = logits_of(replay=False)
    found, replayed = logits_of(replay=True)
    assert (none, replayed) == (None, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("weave", ["always", "never"])
def test_two_ranks_on_one_gpu_have_the_tokens_of_one(weave: str, tmp_path: Path) -> None:
    directory = make_model(tmp_path, "qwen3")
    expected = tokens_of(directory, GREEDY, device="cuda")
    assert tokens_of(directory, GREEDY, device="cuda", tp=2, communicator="thread", weave=weave) == expected


@pytest.mark.skipif(symm_mem_reason() is not None, reason=f"symm_mem: {symm_mem_reason()}")
@pytest.mark.parametrize("weave", ["always", "never"])
def test_two_ranks_that_are_processes_on_one_gpu_have_the_tokens_of_one(
    weave: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the fused operation over torch's symmetric memory; gloo stands for nccl, which joins no two ranks on a GPU."""
    monkeypatch.setenv("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES", "1")
    directory = make_model(tmp_path, "qwen3")
    expected = tokens_of(directory, GREEDY, device="cuda")
    assert tokens_of(directory, GREEDY, device="cuda", tp=2, communicator="symm_mem", weave=weave) == expected


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
@pytest.mark.parametrize("communicator", ["auto", "nccl", "thread"])
def test_two_ranks_on_two_gpus_have_the_tokens_of_one(communicator: str, tmp_path: Path) -> None:
    directory = make_model(tmp_path, "qwen3")
    expected = tokens_of(directory, GREEDY, device="cuda")
    assert tokens_of(directory, GREEDY, device="cuda", tp=2, communicator=communicator) == expected


def test_a_cache_that_no_gpu_can_hold_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"a KV cache of .* blocks, .* bytes; .* lower num_kv_blocks"):
        LLM(str(make_model(tmp_path)), device="cuda", num_kv_blocks=2**31)


@contextmanager
def waits_are_errors() -> Iterator[None]:
    """Inside, whatever makes the host wait for the device raises RuntimeError, where torch can tell."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_pass_lets_the_host_go_on(tmp_path: Path) -> None:
    config = EngineConfig(str(make_model(tmp_path)), device="cuda", num_kv_blocks=16)
    group = start(config)
    try:
        batch = ForwardBatch.prefill(40, VOCAB_SIZE)
        first = group.execute(batch).clone()  # compiles kernels
        group.execute(batch)  # captures a graph
        with waits_are_errors():
            again = group.execute(batch)
        assert torch.equal(again, first)
    finally:
        group.close()
