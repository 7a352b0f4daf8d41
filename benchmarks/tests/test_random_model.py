"""Random models, read back by transformers and by Interlace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.serve import drive
from benchmarks.serve.random_model import SHAPES, LlamaShape, write_model
from benchmarks.serve.systems import SYSTEMS
from interlace.errors import BenchError
from interlace.models.config import weight_shapes
from interlace.models.sources import load_model

TINY = SHAPES["llama-tiny"]


def quiet(fraction: float, what: str) -> None:
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("random") / "model"
    write_model(TINY, directory, "F32", quiet)
    return directory


def test_both_forms_hold_the_same_weights(model: Path) -> None:
    ours, stored = load_model(str(model)), load_model(str(model / "gguf" / "model-f32.gguf"))
    for name in weight_shapes(ours.config):
        assert torch.equal(ours.weights.load(name).float(), stored.weights.load(name).float()), name


def test_transformers_reads_the_directory_and_its_tokenizer(model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    oracle = AutoModelForCausalLM.from_pretrained(model)
    assert oracle.num_parameters() == sum(
        torch.Size(size).numel() for size in weight_shapes(load_model(str(model)).config).values()
    )
    text = "Any text, this one: 1 + 2."
    ids = AutoTokenizer.from_pretrained(model)(text)["input_ids"]
    tokenizer = load_model(str(model)).tokenizer
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


def test_the_larger_shape_is_that_of_a_llama_of_a_billion() -> None:
    assert SHAPES["llama-1b"] == LlamaShape(2048, 16, 32, 8, 8192, 128_256)


def test_llama_cpp_is_given_the_gguf_file_of_a_directory(model: Path, tmp_path: Path) -> None:
    (llamacpp,) = [system for system in SYSTEMS if system.name == "llamacpp"]
    assert drive._gguf_within(model, llamacpp) == model / "gguf" / "model-f32.gguf"
    with pytest.raises(BenchError, match=r"llamacpp reads GGUF files; .* has 0 in its folder gguf"):
        drive._gguf_within(tmp_path, llamacpp)


def test_the_bytes_of_weights_as_stored_are_known_for_their_limit(model: Path) -> None:
    file = model / "gguf" / "model-f32.gguf"
    assert drive._model_facts(load_model(str(model)))["stored_bytes"] == file.stat().st_size
    assert drive._model_facts(load_model(str(file)))["stored_bytes"] == file.stat().st_size


def test_a_record_names_a_model_without_its_folders(model: Path) -> None:
    assert drive._model_facts(load_model(str(model)))["name"] == "model"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llama-3b", "new"], "got the shape 'llama-3b'; expected one of"),
        (["llama-tiny", "new", "--gguf", "Q9"], "got the quantisation 'Q9'; expected one"),
        (["llama-tiny", "full"], "full is not empty"),
    ],
)
def test_wrong_arguments_are_told(
    words: list[str],
    message: str,
    invoke: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    result = invoke("random-model", *words)
    assert result.exit_code == 1
    assert message in result.stderr
