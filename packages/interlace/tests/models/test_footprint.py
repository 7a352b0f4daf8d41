"""The bytes of weights in memory, known before they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interlace.models.decoder import Decoder
from interlace.models.footprint import formats_of, resolve_quantize, weights_bytes, weights_name
from interlace.models.shard import Shard
from interlace.models.sources import load_model
from support.stored_cases import ALL_FORMATS
from support.tiny_models import make_gguf, make_model
from tokenweave.communicators import NullCommunicator
from tokenweave.kernels import make_kernels


def assert_bytes_are_those_loaded(path: Path, quantize: str, tp: int, padding: float) -> None:
    """Packed matrices have whole panels of 32 rows, and scales of their own."""
    source, kernels = load_model(str(path)).weights, make_kernels("native")
    formats = formats_of(source, quantize)
    for shard in Shard.all_of(source.config, tp):
        loaded = Decoder(source, shard, kernels, NullCommunicator(), torch.float32, 64, quantize).size_bytes
        counted = weights_bytes(source.config, shard, 4, formats)
        assert counted <= loaded <= padding * counted + 4096, (shard, counted, loaded)


@pytest.mark.parametrize("kind", [form.name.upper() for form in ALL_FORMATS])
def test_the_bytes_of_a_files_own_blocks_are_those_loaded(tmp_path: Path, kind: str) -> None:
    make_gguf(tmp_path / "model.gguf", kind, vocab=1000)
    for tp in (1, 3):
        assert_bytes_are_those_loaded(tmp_path / "model.gguf", "stored", tp, 1.1)


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama_untied", "qwen2_moe", "olmo2"])
def test_the_bytes_of_other_weights_are_those_loaded(tmp_path: Path, quantize: str, family: str) -> None:
    """Rows of 112 values are no whole blocks, so `down` is dense. Gate and up of 16 outputs each fill half a panel."""
    make_model(tmp_path, family)
    assert_bytes_are_those_loaded(tmp_path, quantize, 2, 1.5)


def test_a_matrix_in_fp8_takes_a_byte_for_a_value(tmp_path: Path) -> None:
    make_model(tmp_path / "dense", "qwen2_moe")
    source = load_model(str(tmp_path / "dense")).weights
    formats = formats_of(source, "fp8")
    assert {form.name for form in formats.values()} == {"fp8"}
    shard = Shard.of(source.config, 0, 1)
    dense, router = (
        weights_bytes(source.config, shard, 4, {}),
        4 * (5 + 1) * 64,
    )  # and the shared expert's gate
    assert weights_bytes(source.config, shard, 4, formats) == (dense - 2 * router) // 4 + 2 * router
    make_gguf(tmp_path / "model.gguf", "Q8_0", formats={"v": "Q5_0", "down": "Q4_K"})
    names = {
        name: form.name
        for name, form in formats_of(load_model(str(tmp_path / "model.gguf")).weights, "fp8").items()
    }
    assert [names[f"layers.0.{part}"] for part in ("q", "v", "gate", "down")] == [
        "fp8",
        "fp8",
        "q8_0",
        "q4_k",
    ]


def test_matrices_that_are_joined_with_dense_ones_are_dense(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    make_gguf(path, "Q8_0", formats={"v": "Q5_0", "down": "Q4_K"})
    source = load_model(str(path)).weights
    names = {name: form.name for name, form in formats_of(source, "stored").items()}
    assert names == {
        "embed": "q8_0",
        "layers.0.o": "q8_0",
        "layers.0.gate": "q8_0",
        "layers.0.up": "q8_0",
        "layers.0.down": "q4_k",
    }
    assert formats_of(source, "int4")["layers.0.v"].name == "q4_0"
    assert [weights_name(source, quantize) for quantize in ("none", "stored", "int8")] == [
        "none", "stored+q4_k+q8_0", "int8",
    ]  # fmt: skip
    assert_bytes_are_those_loaded(path, "stored", 1, 1.1)
    assert_bytes_are_those_loaded(path, "int4", 2, 1.1)


def test_weights_are_held_as_the_file_has_them_unless_a_dtype_is_named(tmp_path: Path) -> None:
    make_gguf(tmp_path / "blocks.gguf", "Q8_0")
    make_gguf(tmp_path / "floats.gguf", "F16")
    blocks, floats = (load_model(str(tmp_path / f"{name}.gguf")).weights for name in ("blocks", "floats"))
    assert resolve_quantize("auto", "auto", blocks) == "stored"
    assert [resolve_quantize("auto", dtype, blocks) for dtype in ("float32", "bfloat16")] == ["none"] * 2
    assert resolve_quantize("auto", "auto", floats) == "none"
    assert [resolve_quantize(name, "auto", blocks) for name in ("none", "stored", "int8", "int4")] == [
        "none", "stored", "int8", "int4",
    ]  # fmt: skip


def test_a_model_without_blocks_is_named_as_a_dense_one(tmp_path: Path) -> None:
    source = load_model(str(make_model(tmp_path))).weights
    assert formats_of(source, "stored") == {}
    assert weights_name(source, "stored") == "none"
