"""GGUF models by their bytes rather than their names, and models that are split over several files."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest
import torch

from interlace.errors import ConfigError, CorruptFile, ModelNotFound
from interlace.models.config import weight_shapes
from interlace.models.gguf.names import names_of_parts, stem_of
from interlace.models.gguf.source import GgufSource
from interlace.models.sources import load_model, resolve
from support.tiny_models import make_gguf


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    make_gguf(path)
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The same model in several files."""
    make_gguf(tmp_path / "model.gguf", max_tensors=4)
    found = sorted(tmp_path.glob("*.gguf"))
    assert [path.name for path in found] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    return found


@pytest.mark.parametrize("name", ["model.GGUF", "sha256-0123abcd", "has space é.bin"])
def test_a_gguf_file_is_known_by_its_first_bytes(tmp_path: Path, whole: Path, name: str) -> None:
    shutil.copy(whole, tmp_path / name)
    model = load_model(str(tmp_path / name))
    assert model.config == load_model(str(whole)).config
    assert model.tokenizer.decode(model.tokenizer.encode("Paris")) == "Paris"


@pytest.mark.parametrize("content", [b"", b"GGU", b"GGML and so on"])
def test_other_first_bytes_are_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "blob").write_bytes(content)
    with pytest.raises(ModelNotFound, match="neither a model directory nor a GGUF file"):
        resolve(str(tmp_path / "blob"))
    shutil.move(tmp_path / "blob", tmp_path / "blob.gguf")
    with pytest.raises(CorruptFile, match=r"is empty|truncated|expected b'GGUF'"):
        load_model(str(tmp_path / "blob.gguf"))


def test_a_directory_of_gguf_files_says_to_name_one(tmp_path: Path, whole: Path) -> None:
    shutil.copy(whole, tmp_path / "a.gguf")
    with pytest.raises(ModelNotFound, match=r"has no config\.json.*it holds a\.gguf: name the file itself"):
        load_model(str(tmp_path))


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelNotFound, match="neither"):
        resolve(str(tmp_path / "pipe"))


def test_a_file_for_big_endian_machines_is_told_as_one(tmp_path: Path, whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[4:8] = struct.pack(">I", 3)
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(ConfigError, match="written for big-endian machines"):
        load_model(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("opened", [0, 2])
def test_parts_are_one_model_whichever_is_named(whole: Path, parts: list[Path], opened: int) -> None:
    model, expected = load_model(str(parts[opened])), GgufSource(whole)
    assert model.config == expected.config
    assert model.weights.files == tuple(parts)
    for name in weight_shapes(expected.config):
        assert torch.equal(model.weights.load(name), expected.load(name)), name
    model.weights.release_pages()
    assert torch.equal(model.weights.load("norm"), expected.load("norm"))
    assert model.tokenizer.decode(model.tokenizer.encode("Paris")) == "Paris"


def test_every_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    parts[2].unlink()
    with pytest.raises(CorruptFile, match=r"2 are missing in .*: model-00002-of-00003\.gguf, model-00003-of"):
        load_model(str(parts[0]))


def test_a_part_that_is_not_named_as_one_says_how_it_should_be(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("sha256-0123"))
    with pytest.raises(CorruptFile, match=r"one of 3 parts .* such as model-00001-of-00003\.gguf"):
        load_model(str(renamed))


def test_a_part_under_another_ones_name_is_refused(parts: list[Path]) -> None:
    shutil.copy(parts[2], parts[1])
    with pytest.raises(
        CorruptFile, match=r"model-00002-of-00003\.gguf says that it is part 2 \(from 0\) of 3"
    ):
        load_model(str(parts[0]))


def test_a_damaged_part_is_named(parts: list[Path]) -> None:
    os.truncate(parts[1], parts[1].stat().st_size - 1)
    with pytest.raises(CorruptFile, match=r"model-00002-of-00003\.gguf is truncated"):
        load_model(str(parts[0]))


def test_parts_of_two_models_are_refused(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    make_gguf(tmp_path / "other" / "model.gguf", family="qwen2", max_tensors=5)
    first = shutil.move(tmp_path / "other" / parts[0].name, parts[0])
    with pytest.raises(CorruptFile, match=r"model-00002-of-00003\.gguf: tensor .* is in model-00001-of-"):
        load_model(str(first))


def test_a_part_with_too_few_tensors_is_refused(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    make_gguf(tmp_path / "other" / "model.gguf", family="qwen2", max_tensors=5)
    shutil.copy(tmp_path / "other" / parts[1].name, parts[1])
    with pytest.raises(CorruptFile, match=r"the 3 parts hold 12 tensors, the first part promises 11"):
        load_model(str(parts[0]))


def test_names_of_parts() -> None:
    assert names_of_parts("A-00002-OF-00002.GGUF") == ["A-00001-OF-00002.GGUF", "A-00002-OF-00002.GGUF"]
    assert names_of_parts("a-2-of-3.gguf") == ["a-2-of-3.gguf"]
    assert stem_of("a-Q4_0-00002-of-00002.gguf") == "a-Q4_0"
    assert stem_of("a-Q4_0.GGUF") == "a-Q4_0"
    assert stem_of("sha256-0123") == "sha256-0123"
