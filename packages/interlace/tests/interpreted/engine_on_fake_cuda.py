"""The engine on fake CUDA: its tokens are those of the engine on the CPU. Run by test_fake_cuda_engine.py."""

from __future__ import annotations

import logging
import os
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from interlace import LLM, SamplingParams
from interlace.cli.main import app
from interlace.engine.output import Logprob
from interlace.engine.ranks import runner
from interlace.errors import EngineError, RankFailed
from support.fake_graphs import FakeGraphs
from support.tiny_models import FAMILIES, VOCAB_SIZE, make_model
from tokenweave.kernels import Kernels
from tokenweave.plan import Lane
from tokenweave.streams import HostStreams
from tokenweave.trace import Trace

PROMPTS = [[(7 * i + 3 * p) % VOCAB_SIZE for i in range(length)] for p, length in enumerate((3, 27))]
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
FAST = ("mixtral", "gemma2")
Answer = tuple[list[int], list[dict[int, Logprob]] | None]


def answers(
    directory: Path,
    params: list[SamplingParams] | SamplingParams,
    dtype: str = "float32",
    **options: Any,
) -> list[Answer]:
    with LLM(str(directory), dtype=dtype, threads=1, **options) as llm:
        if options.get("device") == "cuda":
            assert llm.describe()["kernels"] == "cuda"
        outputs = llm.generate(PROMPTS, params)
    return [(output.token_ids, output.outputs[0].logprobs) for output in outputs]


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_has_the_tokens_of_the_cpu(family: str, tmp_path: Path) -> None:
    directory = make_model(tmp_path, family)
    expected = answers(directory, GREEDY, device="cpu")
    assert answers(directory, GREEDY, device="cuda") == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "quantize", "tp"), [("mixtral", "int4", 1), ("qwen3", "int8", 2), ("qwen3_moe", "int4", 2)]
)
def test_weights_in_blocks_have_the_tokens_of_the_reference(
    family: str, quantize: str, tp: int, tmp_path: Path
) -> None:
    """The reference rounds no activations, as the kernels of CUDA do not and the CPU's native ones do."""
    directory = make_model(tmp_path, family)
    expected = answers(directory, GREEDY, device="cpu", kernels="reference", quantize=quantize)
    found = answers(
        directory,
        GREEDY,
        device="cuda",
        quantize=quantize,
        tp=tp,
        communicator="thread" if tp > 1 else "auto",
    )
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama_untied", "mixtral"])
def test_float16_is_near_enough_for_the_same_tokens(family: str, tmp_path: Path) -> None:
    directory = make_model(tmp_path, family)
    assert answers(directory, GREEDY, dtype="float16", device="cuda") == answers(
        directory, GREEDY, device="cpu"
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama_untied", "qwen2_moe"])
def test_weights_in_fp8_have_the_tokens_of_a_model_of_their_values(family: str, tmp_path: Path) -> None:
    directory, rounded = make_model(tmp_path / "own", family), make_model(tmp_path / "rounded", family)
    weights = load_file(rounded / "model.safetensors")
    for name, weight in weights.items():
        if weight.dim() == 2 and not name.endswith((".gate.weight", "shared_expert_gate.weight")):
            scales = weight.float().abs().amax(dim=1, keepdim=True) / 448
            codes = (weight.float() / scales).to(torch.float8_e4m3fn)
            weights[name] = (codes.float() * scales).to(weight.dtype)
    save_file(weights, rounded / "model.safetensors", {"format": "pt"})
    expected = answers(rounded, GREEDY, device="cpu", kernels="reference")
    assert answers(directory, GREEDY, device="cuda", quantize="fp8") == expected


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "qwen3" else pytest.mark.slow) for name in FAMILIES]
)
def test_two_ranks_that_weave_have_the_tokens_of_the_cpu(family: str, tmp_path: Path) -> None:
    directory = make_model(tmp_path, family)
    expected = answers(directory, GREEDY, device="cpu")
    found = answers(directory, GREEDY, device="cuda", tp=2, communicator="thread", weave="always")
    assert found == expected


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "qwen2" else pytest.mark.slow) for name in FAMILIES]
)
def test_in_graphs_every_family_has_the_tokens_of_the_cpu(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A replay does the work again, on the memory that it was captured on. Prefill comes twice, with its shapes."""
    caplog.set_level(logging.INFO, "interlace.progress")
    made: list[FakeGraphs] = []

    def graphs_on(kernels: Kernels) -> FakeGraphs | None:
        if kernels.name != "cuda":
            return None
        made.append(FakeGraphs(kernels.device))
        return made[-1]

    monkeypatch.setattr(runner, "graphs_on", graphs_on)
    directory = make_model(tmp_path, family)
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    expected = answers(directory, params, device="cpu")
    with LLM(str(directory), dtype="float32", device="cuda", max_num_seqs=2, prefix_cache=False) as llm:
        told = [record.message for record in caplog.records if record.name == "interlace.progress"]
        assert told == [f"captured {n} of 2 sizes of decoding batches as CUDA graphs" for n in range(3)]
        for _ in range(2):
            outputs = llm.generate(PROMPTS, params)
            assert [output.token_ids for output in outputs] == [tokens for tokens, _ in expected]
        own = llm._ranks.runner  # type: ignore[attr-defined]
        held = [weakref.ref(part) for part in (own.cache.tensor, own.decoder)]
        del own
        assert len(made[0].captured) == 3  # one row that decodes, two, and the prompts
        assert made[0].num_replays == 2
        made[0].captured.clear()  # which a GPU's does not remember
    assert [part() for part in held] == [None, None]


@pytest.mark.slow
def test_the_command_traces_two_woven_ranks_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over streams that wait for each other, so that each step is behind those that it waits for."""
    waits: list[Lane] = []
    monkeypatch.setattr(HostStreams, "wait", lambda self, stream, event: waits.append(stream))
    directory, path = make_model(tmp_path / "model", "qwen3"), tmp_path / "trace.json"
    ranks = ["--device", "cuda", "--tp", "2", "--communicator", "thread", "--weave", "always"]
    options = ["--model", str(directory), "--raw", "--max-tokens", "3", "--ignore-eos", "--trace", str(path)]
    done = CliRunner().invoke(app, ["generate", *ranks, *options, "a b c d e f g h"])
    assert done.exit_code == 0, done.output
    trace = Trace.read(path)
    assert "devices' events placed on it within" in trace.clock
    assert {Lane.COMPUTE, Lane.TRANSFER} == set(waits)
    assert len(trace.recordings) == 2
    for recording in trace.recordings:
        assert recording.passes[0].plan.split is not None
        assert len(recording.passes) == 3
        for each in recording.passes:
            spans = list(each.spans())
            assert [span.step for span in spans] == list(each.plan.steps)
            for span in spans:
                assert all(spans[other].end_s <= span.start_s + 1e-8 for other in span.step.waits_for)


@pytest.mark.slow
def test_ranks_that_are_processes_have_the_tokens_of_the_cpu(tmp_path: Path) -> None:
    """Joined as on GPUs, but that gloo stands for nccl, and that none of them has symmetric memory."""
    directory = make_model(tmp_path)
    expected = answers(directory, GREEDY, device="cpu")
    assert answers(directory, GREEDY, device="cuda", tp=2, weave="always") == expected
    with pytest.raises(EngineError, match=r"got communicator='symm_mem': symm_mem cannot be had: rank 0: "):
        answers(directory, GREEDY, device="cuda", tp=2, communicator="symm_mem")


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_with_its_name(tmp_path: Path) -> None:
    with LLM(str(make_model(tmp_path)), device="cuda", tp=2, dtype="float32", threads=1) as llm:
        llm.generate(PROMPTS[:1], GREEDY)
        ranks = llm.describe()["ranks"]
        assert isinstance(ranks, list)
        os.kill(ranks[1]["pid"], signal.SIGKILL)
        with pytest.raises(RankFailed, match=r"rank 1 .* was killed by SIGKILL"):
            llm.generate(PROMPTS, GREEDY)


@pytest.mark.slow
def test_prompts_that_begin_alike_are_computed_once(tmp_path: Path) -> None:
    directory = make_model(tmp_path)
    prompts = [PROMPTS[1], [*PROMPTS[1][:20], 5, 6]]
    expected = answers(directory, GREEDY, device="cpu")[1]
    with LLM(str(directory), device="cuda", dtype="float32", threads=1) as llm:
        first, second, again = (
            llm.generate([prompt], GREEDY)[0] for prompt in (prompts[0], prompts[1], prompts[0])
        )
    assert first.token_ids == again.token_ids == expected[0]
    cached = [output.metrics.num_cached_tokens for output in (first, second, again)]
    assert cached == [0, 16, 16]


def test_tokens_are_drawn_and_penalised_as_on_the_cpu(tmp_path: Path) -> None:
    """Also for sequences that are preempted: the cache holds one of them at a time, towards the end."""
    directory = make_model(tmp_path)
    params = [
        SamplingParams(
            temperature=0.8, top_p=0.9, top_k=40, seed=5, max_tokens=24, ignore_eos=True, logprobs=3
        ),
        SamplingParams(
            temperature=1.0,
            min_p=0.02,
            seed=6,
            repetition_penalty=1.3,
            presence_penalty=0.4,
            frequency_penalty=0.2,
            max_tokens=24,
            ignore_eos=True,
        ),
    ]
    expected = answers(directory, params, device="cpu", num_kv_blocks=4)
    found = answers(directory, params, device="cuda", num_kv_blocks=4)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    (_, logprobs), (_, none) = found
    assert none is None
    assert logprobs is not None
    for own, others in zip(logprobs, expected[0][1] or [], strict=True):
        assert {token: at.rank for token, at in own.items()} == {
            token: at.rank for token, at in others.items()
        }
        assert [at.logprob for at in own.values()] == pytest.approx(
            [at.logprob for at in others.values()], abs=1e-4
        )
