"""The sampling that a model's files recommend: which keys are taken, and what a broken file does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from interlace import LLM, SamplingParams
from interlace.errors import ConfigError
from interlace.models.sampling_defaults import TAKEN, defaults_from_directory, defaults_from_gguf
from support.engine_fakes import FakeRanks
from support.tiny_models import make_model

QWEN = {  # as published with Qwen2.5
    "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "transformers_version": "4.37.0",
}  # fmt: skip


def write(directory: Path, content: Any) -> Path:
    (directory / "generation_config.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return directory


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (QWEN, {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.0, "top_p": 0.9}),
        ({"temperature": None, "min_p": 0.1, "max_new_tokens": 9, "typical_p": 0.2}, {"min_p": 0.1}),
        ({"bos_token_id": 1}, {}),
        ("", {}),
    ],
)
def test_these_keys_of_a_directory_are_taken(tmp_path: Path, content: Any, expected: dict[str, Any]) -> None:
    assert defaults_from_directory(write(tmp_path, content)) == expected


def test_a_directory_without_the_file_recommends_nothing(tmp_path: Path) -> None:
    assert defaults_from_directory(tmp_path) == {}


def test_a_gguf_file_s_keys_have_their_own_names() -> None:
    fields = {
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 1.1,
        "general.sampling.mirostat": 2,
        "general.name": "x",
    }
    assert defaults_from_gguf(fields) == {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}


def test_every_key_that_is_taken_is_a_parameter() -> None:
    assert set(TAKEN) <= set(SamplingParams.__dataclass_fields__)


def fake_llm(defaults: dict[str, Any], **options: Any) -> LLM:
    ranks = FakeRanks()
    ranks.sampling_defaults = defaults
    return LLM("fake", ranks=ranks, **options)


def test_a_request_without_parameters_has_the_model_s_and_others_their_own() -> None:
    defaults = {"temperature": 0.0, "repetition_penalty": 3.0}
    given = [SamplingParams(**defaults), SamplingParams(temperature=9.0, seed=1)]
    ours, explicit = fake_llm(defaults), fake_llm({})
    assert ours.sampling_defaults == defaults
    expected = [explicit.generate("hello", params)[0].token_ids for params in given]
    assert expected[0] != expected[1]
    assert ours.generate("hello")[0].token_ids == expected[0]
    assert ours.generate("hello", given[1])[0].token_ids == expected[1]
    assert next(iter(ours.stream("hello"))).token_ids == expected[0][:1]


def test_none_leaves_them_out() -> None:
    llm = fake_llm({"temperature": 0.0}, generation_config="none")
    assert llm.sampling_defaults == {}


@pytest.mark.parametrize(
    "defaults", [{"temperature": "hot"}, {"top_p": 7}, {"top_k": [1]}, {"repetition_penalty": 1e-38}]
)
def test_a_value_that_cannot_be_used_says_how_to_do_without(defaults: dict[str, Any]) -> None:
    llm = fake_llm(defaults)
    (name,) = defaults
    with pytest.raises(
        ConfigError, match=rf"fake: its recommended sampling .*{name}=.*generation_config='none'"
    ):
        llm.generate("hello")
    assert llm.generate("hello", SamplingParams(max_tokens=2, ignore_eos=True))[0].finish_reason == "length"
    assert fake_llm(defaults, generation_config="none").generate("hello")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def test_a_real_model_s_file_reaches_its_requests(model: Path) -> None:
    write(model, QWEN)
    with LLM(str(model), num_kv_blocks=16) as llm:
        assert llm.sampling_defaults == {
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
            "repetition_penalty": 1.05,
        }
    write(model, "")
    with LLM(str(model), num_kv_blocks=16) as llm:
        assert llm.sampling_defaults == {}


def test_a_file_that_is_not_json_is_named(model: Path) -> None:
    write(model, '{"temperature": 0.')
    with pytest.raises(ConfigError, match=r"generation_config\.json is not JSON"):
        LLM(str(model), num_kv_blocks=16)
