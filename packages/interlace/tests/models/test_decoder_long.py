"""The decoder against transformers where rotary scaling stretches a context: within it, across its end, and beyond.

Dynamic and longrope scaling rotate a token by the length of its text, which nothing else may change: neither how a
prompt is cut, nor what else is in the batch, nor which of the tokens were generated.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interlace.engine.config import EngineConfig
from interlace.engine.llm import LLM
from interlace.engine.output import RequestOutput
from interlace.engine.ranks.group import RankGroup
from interlace.engine.ranks.launch import start
from interlace.engine.sampling_params import SamplingParams
from interlace.models.sources import load_model
from support.driver import Driver, logits_of
from support.tiny_models import VOCAB_SIZE, make_model

TOLERANCE = 1e-4  # absolute, on float32 logits
ORIGINAL = 32  # the context before it is stretched by 4
LENGTHS = (20, 31, 32, 33, 50, 90)  # ascending: transformers' dynamic scaling remembers the longest text
HALF_HEAD = [1.0, 1.1, 1.3, 1.5, 2.0, 2.5, 3.0, 4.0]
SCALINGS: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": HALF_HEAD[:1] * 8,
        "long_factor": HALF_HEAD,
    },
}


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCAB_SIZE, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.fixture(scope="module", params=SCALINGS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that names its original context, but for longrope, which names the stretched one."""
    context = 4 * ORIGINAL if request.param == "longrope" else ORIGINAL
    rope = {"rope_theta": 10_000.0, **SCALINGS[request.param]}
    path = tmp_path_factory.mktemp(request.param)
    return make_model(path, "llama", max_position_embeddings=context, rope_parameters=rope)


@pytest.fixture(scope="module")
def oracle(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


@pytest.fixture
def group(directory: Path) -> Iterator[RankGroup]:
    config = EngineConfig(
        str(directory), tp=2, communicator="thread", dtype="float32", num_kv_blocks=32, threads=1
    )
    group = start(config)
    yield group
    group.close()


def test_logits_equal_transformers_however_a_prompt_is_cut(group: RankGroup, oracle: Any) -> None:
    with torch.inference_mode():
        expected = [oracle(torch.tensor([prompt])).logits[0] for prompt in prompts()]
    whole = logits_of(group, prompts())
    for got, one in zip(whole, expected, strict=True):
        torch.testing.assert_close(got, one, rtol=0, atol=TOLERANCE)
    for chunk in (1, 23):
        for got, one in zip(logits_of(group, prompts(), chunk), whole, strict=True):
            assert torch.equal(got, one), f"chunks of {chunk} and whole prompts differ"


@pytest.mark.parametrize("num_prompt", [25, 40])
def test_generated_tokens_equal_transformers_past_the_original_context(
    group: RankGroup, oracle: Any, num_prompt: int
) -> None:
    tokens = prompts()[4]
    expected = generated(oracle, tokens, num_prompt)
    for chunk in (1, len(tokens)):  # as they were generated; and computed anew, as after a preemption
        driver = Driver(group, [tokens], [num_prompt])
        steps = [num_prompt] + [chunk] * ((len(tokens) - num_prompt) // chunk)
        steps = steps if chunk == 1 else [len(tokens)]
        got = torch.cat([driver.run([(0, n)])[0].clone() for n in steps])
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def generated(oracle: Any, tokens: list[int], num_prompt: int) -> Tensor:
    """transformers' logits for a prompt and for each further token, with its cache: (len(tokens), vocab)."""
    from transformers import DynamicCache

    cache = DynamicCache(config=oracle.config)
    steps = [tokens[:num_prompt], *([token] for token in tokens[num_prompt:])]
    with torch.inference_mode():
        oracle(torch.tensor([[0]]))  # a short text: dynamic scaling forgets the longest one it saw
        rows = [oracle(torch.tensor([step]), cache=cache, use_cache=True).logits[0] for step in steps]
    return torch.cat(rows)


def test_woven_passes_have_the_same_bits(group: RankGroup) -> None:
    tokens = prompts()[5]
    (whole,) = Driver(group, [tokens]).run([(0, 90)])
    kept = whole.clone()
    (woven,) = Driver(group, [tokens]).run([(0, 90)], split=40)
    assert torch.equal(woven, kept)


def test_an_engine_generates_as_transformers_past_the_original_context(directory: Path, oracle: Any) -> None:
    prompt, num_new = prompts()[0], 24  # 20 tokens become 44
    with torch.inference_mode():
        oracle(torch.tensor([[0]]))  # see above
        greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        ids = torch.tensor([prompt])
        generated = oracle.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new, **greedy
        )
    with LLM(str(directory), num_kv_blocks=16, dtype="float32") as llm:
        params = SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True)
        (output,) = llm.generate([prompt], params)
    assert list(output.token_ids) == generated[0, len(prompt) :].tolist()


@pytest.mark.slow
def test_what_is_found_of_texts_across_the_original_context_has_the_bits_of_what_is_computed(
    directory: Path,
) -> None:
    short, long = prompts()[0], prompts()[4]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=2)

    def answers(prefix_cache: bool) -> list[RequestOutput]:
        with LLM(str(directory), num_kv_blocks=64, dtype="float32", prefix_cache=prefix_cache) as llm:
            (first,) = llm.generate([short], params)  # its text ends beyond the original context
            follow_ups = [[*short, *first.token_ids[:count]] for count in (10, 24)]
            texts = [*follow_ups, long, [*long, 1], long]
            return [first, *(llm.generate([text], params)[0] for text in texts)]

    found, computed = answers(True), answers(False)
    assert [one.outputs for one in found] == [one.outputs for one in computed]
    of_the_same = [one.metrics.num_cached_tokens for one in (found[1], found[5])]
    assert of_the_same == [16, 48]


def test_the_context_is_the_stretched_one(directory: Path) -> None:
    assert load_model(str(directory)).config.max_position == 4 * ORIGINAL
    with LLM(str(directory), num_kv_blocks=16, dtype="float32") as llm:
        assert llm.max_model_len == 4 * ORIGINAL
        (output,) = llm.generate([prompts()[5]], SamplingParams(max_tokens=2, ignore_eos=True))
        assert len(output.token_ids) == 2
