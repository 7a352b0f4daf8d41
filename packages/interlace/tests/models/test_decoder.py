"""The decoder against transformers: every family, over 1 to 4 ranks, however a prompt is cut and batched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.group import RankGroup
from interlace.engine.ranks.launch import start
from interlace.models.config import BIASABLE
from interlace.models.shard import Shard
from support.driver import Driver, logits_of
from support.gguf_conversion import write_gguf
from support.tiny_models import FAMILIES, VOCAB_SIZE, make_gguf, make_model

TOLERANCE = 1e-4  # absolute, on float32 logits
LENGTHS = (1, 15, 16, 17, 33, 50)  # across the block boundaries at 16, 32 and 48


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, VOCAB_SIZE, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.fixture(scope="module", params=FAMILIES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Tensor]]:
    """A small random model directory and transformers' logits for each prompt, (len(prompt), vocab) float32."""
    directory = tmp_path_factory.mktemp(request.param)
    make_model(directory, request.param)
    return directory, expected_logits(directory, prompts())


def expected_logits(directory: Path, prompts: list[list[int]]) -> list[Tensor]:
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return [oracle(torch.tensor([prompt])).logits[0] for prompt in prompts]


def ranks(directory: Path, tp: int, **options: object) -> RankGroup:
    communicator = "thread" if tp > 1 else "null"
    fields = {"communicator": communicator, "dtype": "float32", "num_kv_blocks": 32, "threads": 1, **options}
    return start(EngineConfig(str(directory), tp=tp, **fields))


@pytest.fixture(params=[1, 3, *(pytest.param(tp, marks=pytest.mark.slow) for tp in (2, 4))])
def group(request: pytest.FixtureRequest, model: tuple[Path, list[Tensor]]) -> Iterator[RankGroup]:
    group = ranks(model[0], request.param)
    yield group
    group.close()


def assert_close(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


def test_logits_equal_transformers_batched_alone_and_in_chunks(
    group: RankGroup, model: tuple[Path, list[Tensor]]
) -> None:
    whole = logits_of(group, prompts())
    assert_close(whole, model[1])
    for prompt, expected in zip(prompts(), whole, strict=True):
        assert torch.equal(logits_of(group, [prompt])[0], expected), "alone and batched differ"
    for chunk in (1, 7, 16, 23):
        for got, expected in zip(logits_of(group, prompts(), chunk), whole, strict=True):
            assert torch.equal(got, expected), f"chunks of {chunk} and whole prompts differ"


def test_reference_kernels_give_the_same_logits(model: tuple[Path, list[Tensor]]) -> None:
    group = ranks(model[0], tp=2, kernels="reference")
    try:
        assert_close(logits_of(group, prompts(), chunk=20), model[1])
    finally:
        group.close()


def test_a_bias_behind_a_sum_counts_once_where_rank_0_has_nothing_to_sum(tmp_path: Path) -> None:
    """With more ranks than heads, rank 0 has neither heads nor columns of the MLP, but still the biases."""
    make_model(tmp_path, "llama_biases")
    group = ranks(tmp_path, tp=6)
    try:
        assert not Shard.of(group.runner.model_config, 0, 6).heads
        assert_close(logits_of(group, prompts()), expected_logits(tmp_path, prompts()))
    finally:
        group.close()


AS_GGUF = {  # by tiny model: the GGUF architecture, and changes
    "phi3": ("phi3", {}),
    "phi3_longrope": ("phi3", {}),
    "qwen2_moe": ("qwen2moe", {}),
    "qwen3_moe": ("qwen3moe", {"mlp_only_layers": []}),
    "olmo2": ("olmo2", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16}),  # a GGUF file has no key for it
    "gemma3": (
        "gemma3",
        {
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        },
    ),
}


@pytest.mark.parametrize("family", AS_GGUF)
def test_a_gguf_file_gives_the_logits_of_the_directory_it_was_made_from(tmp_path: Path, family: str) -> None:
    architecture, changes = AS_GGUF[family]
    directory = make_model(tmp_path / "directory", family, **changes)
    write_gguf(directory, tmp_path / "model.gguf", architecture)
    group = ranks(tmp_path / "model.gguf", tp=2)
    try:
        assert_close(logits_of(group, prompts()), expected_logits(directory, prompts()))
    finally:
        group.close()


# The likeliest token behind each of these, as llama-cpp-python 0.3.36 says of the same files.
GGUF_PROMPT = [5, 17, 99, 42, 7, 250, 13, 8, 77, 201, 33, 4]
LLAMA_CPP = [
    ("llama", 2, BIASABLE, [308, 227, 108, 226, 64, 227, 0, 17, 180, 166, 132, 96]),
    ("qwen3", 0, ("q", "k", "v"), [308, 143, 82, 252, 106, 287, 283, 106, 106, 119, 70, 282]),
]


@pytest.mark.parametrize(
    ("family", "seed", "biases", "likeliest"), LLAMA_CPP, ids=[family for family, *_ in LLAMA_CPP]
)
@pytest.mark.parametrize("tp", [1, 3])
def test_biases_of_a_gguf_file_do_what_they_do_in_llama_cpp(
    tmp_path: Path, family: str, seed: int, biases: tuple[str, ...], likeliest: list[int], tp: int
) -> None:
    """Any one of them left out changes at least one of these tokens."""
    make_gguf(tmp_path / "model.gguf", "F32", family=family, seed=seed, biases=biases)
    group = ranks(tmp_path / "model.gguf", tp)
    try:
        assert logits_of(group, [GGUF_PROMPT])[0].argmax(dim=-1).tolist() == likeliest
    finally:
        group.close()


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroup]:
    directory = tmp_path_factory.mktemp("mixtral")
    make_model(directory, "mixtral")
    group = ranks(directory, tp=1, dtype="bfloat16")
    yield group
    group.close()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bits_do_not_depend_on_what_else_is_in_the_batch(mixtral: RankGroup, data: st.DataObject) -> None:
    """bfloat16 and experts: the hardest case for the promise that a request's tokens are its own."""
    alone = [logits_of(mixtral, [prompt])[0] for prompt in prompts()]
    driver = Driver(mixtral, prompts())
    while pending := [s for s, n in enumerate(LENGTHS) if driver.done[s] < n]:
        chosen = data.draw(st.lists(st.sampled_from(pending), min_size=1, unique=True))
        chunks = [(s, data.draw(st.integers(1, LENGTHS[s] - driver.done[s]))) for s in chosen]
        for (s, n), logits in zip(chunks, driver.run(chunks), strict=True):
            assert torch.equal(logits, alone[s][driver.done[s] - n : driver.done[s]])
