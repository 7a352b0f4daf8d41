"""Weights in blocks: the same logits as from the dense values that they stand for, over 1 to 5 ranks."""

from __future__ import annotations

import logging
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from interlace.models.gguf.source import GgufSource
from interlace.models.head_padding import HeadPadding
from interlace.models.hf.source import SafetensorsSource
from interlace.models.matrix_reader import MatrixReader
from support.driver import logits_of, ranks_in_threads
from support.stored_cases import ALL_FORMATS, random_weight
from support.tiny_models import VOCAB_SIZE, make_gguf, make_model
from tokenweave.errors import KernelError
from tokenweave.kernels import FORMATS, dequantise, quantise
from tokenweave.kernels.lazy import join_stored

NAMES = [form.name.upper() for form in ALL_FORMATS]
MADE = {"int8": gguf.GGMLQuantizationType.Q8_0, "int4": gguf.GGMLQuantizationType.Q4_0}
PROMPTS = [[5, 9, 2, 300, 41], [7], list(range(100, 133))]


def logits(path: Path, tp: int, quantize: str, kernels: str = "reference") -> list[Tensor]:
    with ranks_in_threads(path, tp, kernels=kernels, quantize=quantize) as group:
        return logits_of(group, PROMPTS)


def assert_near(got: list[Tensor], expected: list[Tensor], share: float) -> None:
    """The size of all differences together is within a share of the logits' own."""
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= share * other.norm()


@pytest.mark.parametrize(
    ("kind", "family"), [*((name, "llama") for name in NAMES), ("Q4_1", "mixtral"), ("Q6_K", "mixtral")]
)
def test_logits_are_those_of_the_dequantised_weights(tmp_path: Path, kind: str, family: str) -> None:
    path = tmp_path / "model.gguf"
    make_gguf(path, kind, family=family)
    dense = logits(path, 1, "none")
    assert_near(logits(path, 3, "stored"), dense, 1e-5)
    # Native products round their rows to eight bits, which large scores magnify; other weights differ by over 1.
    assert_near(logits(path, 2, "stored", "native"), dense, 0.3)


def test_matrices_of_several_formats_are_multiplied_as_one(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    make_gguf(path, "Q4_K", formats={"v": "Q6_K", "down": "Q6_K", "up": "Q5_K"}, biases=("q", "k", "v", "o"))
    dense = logits(path, 1, "none")
    for tp in (1, 3, 5):
        assert_near(logits(path, tp, "stored"), dense, 1e-4)


def test_rows_and_columns_are_those_of_the_dense_weight(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    make_gguf(path, "Q5_K")
    source = GgufSource(path)
    for name in ("layers.0.q", "layers.0.k", "layers.0.v", "layers.0.o", "layers.0.down", "embed"):
        for rows, columns in (
            (range(5, 41), None),
            (range(64), range(32, 224)),
            (range(7, 8), range(200, 256)),
        ):
            stored = source.stored(name, rows, columns)
            assert stored is not None
            assert torch.equal(dequantise(stored), source.load(name, rows, columns))
    assert source.stored("norm") is None
    assert source.stored("embed", range(3, 3)) is None
    assert source.stored("layers.0.o", columns=range(0)) is None


def test_formats_that_kernels_do_not_multiply_are_dense_with_a_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.gguf"
    make_gguf(path, "Q8_0", formats={"v": "Q5_0", "down": "Q5_1"})
    with caplog.at_level(logging.WARNING):
        got = logits(path, 1, "stored")
    assert_near(got, logits(path, 1, "none"), 1e-4)
    assert (
        "1 matrix is held as dense floats: they are stored as q5_0, which the kernels do not" in caplog.text
    )
    assert "they are stored as q5_1" in caplog.text
    assert "2 matrices are held as dense floats: they are joined with such" in caplog.text


def test_a_model_without_blocks_is_dense_with_a_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, file = make_model(tmp_path / "model"), tmp_path / "model.gguf"
    make_gguf(file, "F16")
    for path in (directory, file):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            got = logits(path, 2, "stored")
        assert caplog.text.count("have no weights in blocks: all are held as dense floats. int8 or int4") == 1
        for one, other in zip(got, logits(path, 2, "none"), strict=True):
            assert torch.equal(one, other)
    caplog.clear()
    make_gguf(file, "Q8_0")
    with caplog.at_level(logging.WARNING):
        logits(file, 1, "stored")
        logits(directory, 1, "none")
    assert "no weights in blocks" not in caplog.text


@pytest.mark.parametrize("quantize", MADE)
def test_blocks_are_made_of_dense_weights_whatever_the_ranks(
    tmp_path: Path, quantize: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_model(tmp_path)
    source = SafetensorsSource(tmp_path)
    reader, kind = MatrixReader(source, quantize), MADE[quantize]
    whole = gguf.quants.quantize(source.load("layers.1.o").numpy(), kind)
    expected = torch.from_numpy(gguf.quants.dequantize(whole, kind))
    for columns in (range(64), range(16), range(16, 48), range(48, 64)):  # heads are 16 wide, blocks 32
        stored = reader.columns("layers.1.o", columns, is_widened=False)
        assert stored is not None
        assert torch.equal(dequantise(stored.rows(range(64))), expected[:, columns.start : columns.stop])
    with caplog.at_level(logging.WARNING):
        alone = logits(tmp_path, 1, quantize)
    assert (
        "2 matrices are held as dense floats: they have rows of 112 values, no multiple of the 32"
        in caplog.text
    )
    for tp in (3, 5):  # with five ranks and four heads one has none
        assert_near(logits(tmp_path, tp, quantize), alone, 1e-4)
    assert_near(alone, logits(tmp_path, 1, "none"), 0.1 if quantize == "int8" else 0.8)


@pytest.mark.parametrize("quantize", MADE)
def test_blocks_of_a_file_stay_when_others_are_made(tmp_path: Path, quantize: str) -> None:
    path = tmp_path / "model.gguf"
    make_gguf(path, "F16", formats={"v": "Q6_K", "gate": "Q5_0"})
    reader = MatrixReader(GgufSource(path), quantize)
    made = "q8_0" if quantize == "int8" else "q4_0"
    rows = {f"layers.0.{part}": range(64) for part in ("q", "v", "gate", "up")}
    stack = reader.stack(rows)
    assert stack is not None
    assert [part.format.name for part in stack] == [made, "q6_k", made, made]
    assert not reader.notices


def test_heads_that_are_widened_get_rows_of_zeros(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    padding = HeadPadding.to_multiple(24, 16)
    weight = random_weight(1, FORMATS["q6_k"], 72, 256)
    widened, expected = padding.stored_rows(join_stored([weight])), padding.rows(dequantise(weight))
    for rows in (range(widened.n), range(3, 33), range(40, 41)):  # heads of 32 rows
        assert torch.equal(dequantise(widened.rows(rows)), expected[rows.start : rows.stop])
    make_model(tmp_path, head_dim=24)
    with caplog.at_level(logging.WARNING):
        got = logits(tmp_path, 1, "int8", "native")
    assert "2 matrices are held as dense floats: they have columns for heads that are widened" in caplog.text
    assert_near(got, logits(tmp_path, 1, "none"), 0.2)


@pytest.mark.parametrize("kind", MADE.values(), ids=MADE)
def test_quantised_bytes_are_those_of_gguf(kind: gguf.GGMLQuantizationType) -> None:
    random = np.random.default_rng(3)
    values = random.standard_normal((40, 320)).astype(np.float32)
    values[3] = 0  # no scale at all
    values[4, ::2] = -values[4, 1::2]  # the largest size with both signs
    values[5] = np.round(values[5] * 8) / 127  # halves to round
    stored = quantise(torch.from_numpy(values), FORMATS[kind.name.lower()])
    assert np.array_equal(stored.blocks.numpy(), gguf.quants.quantize(values, kind))
    halved = torch.from_numpy(values).bfloat16()
    expected = gguf.quants.quantize(halved.float().numpy(), kind)
    assert np.array_equal(quantise(halved, FORMATS[kind.name.lower()]).blocks.numpy(), expected)


def test_what_has_no_blocks_is_refused() -> None:
    cases = [
        (torch.ones(2, 48), "q8_0", "48 values, expected a multiple of 32.*leave the weight dense"),
        (torch.ones(2, 32), "q6_k", "cannot quantise to q6_k, expected one of q8_0, q4_0"),
        (torch.full((2, 32), 1e9), "q4_0", r"values of up to 1e\+09 have no scale in q4_0"),
        (torch.full((2, 32), float("nan")), "q8_0", "no scale in q8_0"),
    ]
    for weight, name, message in cases:
        with pytest.raises(KernelError, match=message):
            quantise(weight, FORMATS[name])
    assert VOCAB_SIZE % 32  # the shares of the vocabulary are uneven above
