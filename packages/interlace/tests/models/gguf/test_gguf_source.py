"""GgufSource: every quantisation and family, slice by slice, and clear errors."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.errors import ConfigError, CorruptFile, ModelError
from interlace.models.config import BIASABLE, weight_shapes
from interlace.models.gguf.file import GgufFile
from interlace.models.gguf.source import GgufSource
from interlace.models.sources import load_model
from support.tiny_models import make_gguf

QUANTIZED_BY_GGUF = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0"]


@pytest.fixture(scope="module")
def q4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    make_gguf(path, "Q4_1")
    return path


@pytest.mark.parametrize("quantization", QUANTIZED_BY_GGUF)
def test_every_quantisation_is_dequantised(tmp_path: Path, quantization: str) -> None:
    expected = make_gguf(tmp_path / "model.gguf", quantization)
    source = GgufSource(tmp_path / "model.gguf")
    for name in weight_shapes(source.config):
        assert torch.equal(source.load(name).float(), expected[name]), name


@pytest.mark.parametrize(
    "kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ3_S"]
)
def test_quantisations_that_only_llama_cpp_writes_are_dequantised(tmp_path: Path, kind: str) -> None:
    """The K and IQ formats, from random blocks, against gguf's dequantisation of the whole tensor."""
    path = tmp_path / "model.gguf"
    make_gguf(path, "Q8_0")
    file = GgufFile(path)
    info = file.tensors["blk.0.ffn_down.weight"]  # (256, 512)
    type_ = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    row_bytes = 512 // block * block_bytes
    stored = np.random.default_rng(1).integers(
        0, 60, (256, row_bytes), dtype=np.uint8
    )  # small: finite float16 scales
    writer_copy(path, tmp_path / "other.gguf", info.name, stored, type_)
    expected = torch.from_numpy(gguf.quants.dequantize(stored, type_))
    source = GgufSource(tmp_path / "other.gguf")
    assert torch.equal(source.load("layers.0.down"), expected)
    part = source.load("layers.0.down", rows=range(7, 90), columns=range(33, 300))
    assert torch.equal(part, expected[7:90, 33:300])


def writer_copy(
    path: Path, target: Path, name: str, stored: np.ndarray, kind: gguf.GGMLQuantizationType
) -> None:
    """Writes the file again with one tensor's bytes and type replaced."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        if field.contents() != []:
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        data, type_ = (stored, kind) if tensor.name == name else (tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mixtral"])
def test_every_family_loads(tmp_path: Path, family: str) -> None:
    expected = make_gguf(tmp_path / "model.gguf", "Q4_0", family=family)
    source = GgufSource(tmp_path / "model.gguf")
    assert source.config.family == family
    assert set(weight_shapes(source.config)) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(source.load(name), tensor), name


@pytest.mark.parametrize(
    ("family", "biases"),
    [("llama", BIASABLE), ("llama", ("v", "down")), ("qwen3", BIASABLE), ("mixtral", ("q", "k", "v", "o"))],
)
def test_biases_are_loaded_where_the_file_has_them(
    tmp_path: Path, family: str, biases: tuple[str, ...]
) -> None:
    expected = make_gguf(tmp_path / "model.gguf", "Q4_0", family=family, biases=biases)
    source = GgufSource(tmp_path / "model.gguf")
    assert source.config.biases == biases
    assert set(weight_shapes(source.config)) == set(expected)
    for part in biases:
        whole = source.load(f"layers.0.{part}_bias")
        assert torch.equal(whole, expected[f"layers.0.{part}_bias"])
        assert torch.equal(source.load(f"layers.0.{part}_bias", rows=range(5, 41)), whole[5:41])


@pytest.mark.parametrize("name", ["layers.0.q", "layers.0.v", "layers.0.down", "embed"])
@pytest.mark.parametrize("rows", [range(96), range(32, 64), range(5, 41), range(7, 7)])
@pytest.mark.parametrize("columns", [None, range(64, 256), range(3, 70), range(9, 9)])
def test_a_slice_is_the_slice_of_the_whole(q4: Path, name: str, rows: range, columns: range | None) -> None:
    source = GgufSource(q4)
    if name == "layers.0.v" and rows.stop > 64:
        rows = range(64)
    whole = source.load(name)
    wanted = range(whole.shape[1]) if columns is None else columns
    expected = whole[rows.start : rows.stop, wanted.start : wanted.stop]
    part = source.load(name, rows, columns)
    assert torch.equal(part, expected)
    assert part.is_contiguous()


def test_llama31_scaling_comes_from_the_tensor(tmp_path: Path, q4: Path) -> None:
    reader = gguf.GGUFReader(q4)
    target = tmp_path / "scaled.gguf"
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("llama."):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    divisors = np.linspace(1, 8, 16, dtype=np.float32)
    writer.add_tensor("rope_freqs.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rope = GgufSource(target).config.rope
    assert rope.scaling is None
    assert rope.divisors == tuple(divisors.tolist())


def test_metadata_equal_the_reference_reader(q4: Path) -> None:
    ours, reader = GgufFile(q4), gguf.GGUFReader(q4)
    theirs = {name: f.contents() for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    assert dict(ours.fields) == theirs
    for tensor in reader.tensors:
        info = ours.tensors[tensor.name]
        assert (info.offset, info.size_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert info.shape == tuple(reversed(tensor.shape.tolist()))


def damaged(tmp_path: Path, original: Path, at: int, content: bytes) -> Path:
    data = bytearray(original.read_bytes())
    data[at : at + len(content)] = content
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    return path


def test_other_magic_is_no_gguf(tmp_path: Path, q4: Path) -> None:
    with pytest.raises(CorruptFile, match="starts with b'GGML', expected b'GGUF'"):
        GgufSource(damaged(tmp_path, q4, 0, b"GGML"))


def test_unknown_version_is_named(tmp_path: Path, q4: Path) -> None:
    with pytest.raises(ConfigError, match="version 9 is not supported"):
        GgufSource(damaged(tmp_path, q4, 4, struct.pack("<I", 9)))


def test_unknown_quantisation_is_named(tmp_path: Path, q4: Path) -> None:
    name = b"blk.0.attn_v.weight"
    type_at = q4.read_bytes().index(name) + len(name) + 4 + 2 * 8
    with pytest.raises(ConfigError, match=r"'blk\.0\.attn_v\.weight' has unknown quantisation type 77"):
        GgufSource(damaged(tmp_path, q4, type_at, struct.pack("<I", 77)))


@pytest.mark.parametrize(("moved_bytes", "told"), [(17, "expected a multiple of 32"), (32, "begins inside")])
def test_a_tensor_in_a_wrong_place_is_corrupt(tmp_path: Path, q4: Path, moved_bytes: int, told: str) -> None:
    """Its bytes would be read as other blocks, without a word."""
    name = b"blk.0.attn_v.weight"
    offset_at = q4.read_bytes().index(name) + len(name) + 4 + 2 * 8 + 4
    (offset,) = struct.unpack_from("<Q", q4.read_bytes(), offset_at)
    with pytest.raises(CorruptFile, match=told):
        GgufSource(damaged(tmp_path, q4, offset_at, struct.pack("<Q", offset - moved_bytes)))


def test_impossible_counts_are_corrupt(tmp_path: Path, q4: Path) -> None:
    for at in (8, 16):  # tensors, fields
        with pytest.raises(CorruptFile, match="promises 4611686018427387904"):
            GgufSource(damaged(tmp_path, q4, at, struct.pack("<Q", 1 << 62)))


@pytest.mark.parametrize("kept", [0, 3, 20, 200, 1500, -1, -100_000])
def test_truncated_file_is_corrupt(tmp_path: Path, q4: Path, kept: int) -> None:
    path = damaged(tmp_path, q4, 0, b"")
    os.truncate(path, kept if kept >= 0 else path.stat().st_size + kept)
    with pytest.raises(CorruptFile, match=r"damaged\.gguf"):
        GgufSource(path)


def test_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
    make_gguf(tmp_path / "model.gguf", family="falcon")
    with pytest.raises(
        ConfigError, match=r"unknown architecture 'falcon'.*supported are llama, qwen2, qwen3"
    ):
        GgufSource(tmp_path / "model.gguf")


def test_missing_tensor_is_named(tmp_path: Path, q4: Path) -> None:
    at = q4.read_bytes().index(b"blk.0.attn_v.weight")
    with pytest.raises(CorruptFile, match=r"'blk\.0\.attn_v\.weight' \(layers\.0\.v\) is missing"):
        GgufSource(damaged(tmp_path, q4, at, b"BLK"))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), junk=st.binary(min_size=1, max_size=16), cut=st.booleans())
def test_damage_anywhere_gives_a_model_error_or_a_load(
    tmp_path: Path, q4: Path, at: float, junk: bytes, cut: bool
) -> None:
    size = q4.stat().st_size
    position = int(at**4 * (size - 1))  # most of the damage goes to the header
    path = damaged(tmp_path, q4, position, junk)
    if cut:
        os.truncate(path, position + len(junk))
    try:
        model = load_model(str(path))
        with np.errstate(all="ignore"):
            for name, shape in weight_shapes(model.config).items():
                assert model.weights.load(name, rows=range(min(2, shape[0]))) is not None
        model.tokenizer.encode("a rank")
    except ModelError:
        pass
