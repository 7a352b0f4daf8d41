"""SafetensorsSource: every family's weights as transformers has them, slice by slice, and clear errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from interlace.errors import ConfigError, CorruptFile, ModelError, ModelNotFound, ShapeMismatch
from interlace.models.config import weight_shapes
from interlace.models.hf.source import SafetensorsSource
from support.tiny_models import FAMILIES, build, make_model

HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "attention_post_norm": "post_attention_layernorm.weight",
    "mlp_post_norm": "post_feedforward_layernorm.weight",
    "shared_gate": "mlp.shared_expert_gate.weight",
}
GEMMA = {"gemma2", "gemma3_text"}  # their norms multiply by one more than the weight in the file


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("llama"), "llama_untied")


def oracle(model: Any, name: str) -> torch.Tensor:
    """The weight called `name` out of a transformers model."""
    weight = stored(model, name)
    return weight + 1 if model.config.model_type in GEMMA and name.endswith("norm") else weight


def rows_of_qkv(model: Any, whole: torch.Tensor) -> dict[str, torch.Tensor]:
    """q, k and v out of one matrix that holds them one after the other."""
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    return dict(zip("qkv", whole.split([head_dim * count for count in heads]), strict=True))


def stored(model: Any, name: str) -> torch.Tensor:
    """The weight called `name` as its file has it."""
    state = model.state_dict()
    match name.split("."):
        case [top]:
            return state[HF_NAMES[top]]
        case ["layers", i, "experts", e, part]:
            stacked = state[f"model.layers.{i}.mlp.experts.{'down' if part == 'down' else 'gate_up'}_proj"][
                int(e)
            ]
            return {"down": stacked, "gate": stacked.chunk(2)[0], "up": stacked.chunk(2)[-1]}[part]
        case ["layers", i, "shared", part]:
            return state[f"model.layers.{i}.mlp.shared_expert.{part}_proj.weight"]
        case ["layers", i, ("q" | "k" | "v") as part] if (
            f"model.layers.{i}.self_attn.qkv_proj.weight" in state
        ):
            return rows_of_qkv(model, state[f"model.layers.{i}.self_attn.qkv_proj.weight"])[part]
        case ["layers", i, ("gate" | "up") as part] if f"model.layers.{i}.mlp.gate_up_proj.weight" in state:
            gate, up = state[f"model.layers.{i}.mlp.gate_up_proj.weight"].chunk(2)
            return {"gate": gate, "up": up}[part]
        case ["layers", i, "mlp_norm"] if model.config.model_type in GEMMA:
            return state[f"model.layers.{i}.pre_feedforward_layernorm.weight"]
        case ["layers", i, "router"]:
            return state[f"model.layers.{i}.mlp.gate.weight"]
        case ["layers", i, ("q_norm" | "k_norm") as part]:
            return state[f"model.layers.{i}.self_attn.{part}.weight"]
        case ["layers", i, part] if part.endswith("_bias"):
            part = part.removesuffix("_bias")
            return state[f"model.layers.{i}.{'self_attn' if part in 'qkvo' else 'mlp'}.{part}_proj.bias"]
        case ["layers", i, part] if part in "qkvo":
            return state[f"model.layers.{i}.self_attn.{part}_proj.weight"]
        case ["layers", i, part]:
            return state[f"model.layers.{i}.{HF_NAMES.get(part, f'mlp.{part}_proj.weight')}"]
    raise KeyError(name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_the_one_transformers_has(tmp_path: Path, family: str) -> None:
    source = SafetensorsSource(make_model(tmp_path, family, max_shard_size="60KB"))
    assert len(source.files) > 1
    model = build(family)
    for name, shape in weight_shapes(source.config).items():
        loaded = source.load(name)
        assert loaded.shape == shape
        assert torch.equal(loaded, oracle(model, name)), name
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    assert sum(torch.Size(s).numel() for s in weight_shapes(source.config).values()) == num_weights


def test_a_slice_is_the_slice_of_the_whole(llama: Path) -> None:
    source = SafetensorsSource(llama)
    whole = source.load("layers.1.down")
    for rows, columns in ((range(3, 17), None), (None, range(5, 40)), (range(1), range(111, 112))):
        part = source.load("layers.1.down", rows, columns)
        assert torch.equal(
            part,
            whole[slice(rows and rows.start, rows and rows.stop)][
                :, slice(columns and columns.start, columns and columns.stop)
            ],
        )
    assert source.load("layers.0.q", rows=range(0)).shape == (0, 64)
    assert source.load("layers.0.o", columns=range(16, 16)).shape == (64, 0)
    assert torch.equal(source.load("norm", rows=range(4, 9)), source.load("norm")[4:9])


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("layers.9.q", None, None),
        ("router", None, None),
        ("layers.0.q", range(60, 65), None),
        ("layers.0.q", range(-1, 3), None),
        ("layers.0.q", range(0, 8, 2), None),
        ("layers.0.q", None, range(3, 2)),
        ("norm", None, range(1)),
    ],
)
def test_a_slice_outside_the_weight_is_refused(
    llama: Path, name: str, rows: range | None, columns: range | None
) -> None:
    with pytest.raises(ModelError):
        SafetensorsSource(llama).load(name, rows, columns)


@pytest.mark.parametrize(
    ("stored", "loaded"), [("bfloat16", "bfloat16"), ("float16", "float32"), ("float64", "float32")]
)
def test_bfloat16_stays_and_others_become_float32(
    tmp_path: Path, llama: Path, stored: str, loaded: str
) -> None:
    copy_model(llama, tmp_path, lambda tensors: {k: v.to(getattr(torch, stored)) for k, v in tensors.items()})
    tensor = SafetensorsSource(tmp_path).load("layers.0.up")
    assert tensor.dtype == getattr(torch, loaded)
    original = SafetensorsSource(llama).load("layers.0.up")
    assert torch.equal(tensor, original.to(getattr(torch, stored)).to(tensor.dtype))


def copy_model(
    source: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]] = dict, **config: Any
) -> Path:
    """A copy of a model directory with other tensors or configuration values."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors")
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **config}))
    return target


def without(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in tensors.items() if key != name}


def test_missing_tensor_is_named(tmp_path: Path, llama: Path) -> None:
    copy_model(llama, tmp_path, lambda tensors: without(tensors, "model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CorruptFile, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*is missing"):
        SafetensorsSource(tmp_path)


def test_shape_against_the_configuration_is_named(tmp_path: Path, llama: Path) -> None:
    copy_model(llama, tmp_path, intermediate_size=128)
    with pytest.raises(ShapeMismatch, match=r"has shape \(112, 64\), expected \(128, 64\)"):
        SafetensorsSource(tmp_path)


def test_unsupported_dtype_is_named(tmp_path: Path, llama: Path) -> None:
    copy_model(llama, tmp_path, lambda tensors: {k: v.to(torch.int8) for k, v in tensors.items()})
    with pytest.raises(ConfigError, match="stored as I8; supported are F32, BF16, F16"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("kept_bytes", [0, 4, 8, 100, 2000, -1, -4096])
def test_truncated_file_is_corrupt(tmp_path: Path, llama: Path, kept_bytes: int) -> None:
    copy_model(llama, tmp_path)
    file = tmp_path / "model.safetensors"
    os.truncate(file, kept_bytes if kept_bytes >= 0 else file.stat().st_size + kept_bytes)
    with pytest.raises(CorruptFile, match=r"model\.safetensors .*truncated or damaged"):
        SafetensorsSource(tmp_path)


def test_header_longer_than_the_file_is_corrupt(tmp_path: Path, llama: Path) -> None:
    copy_model(llama, tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write((1 << 40).to_bytes(8, "little"))
    with pytest.raises(CorruptFile):
        SafetensorsSource(tmp_path)


def test_index_that_names_a_missing_file_is_corrupt(tmp_path: Path) -> None:
    make_model(tmp_path, max_shard_size="60KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CorruptFile, match=f"names '{gone.name}', which is not in"):
        SafetensorsSource(tmp_path)


def test_a_whole_file_is_read_whatever_an_index_beside_it_says(tmp_path: Path, llama: Path) -> None:
    copy_model(llama, tmp_path)
    stale = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(stale))
    source = SafetensorsSource(tmp_path)
    assert source.files == (tmp_path / "model.safetensors",)
    assert torch.equal(source.load("norm"), SafetensorsSource(llama).load("norm"))


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_names_without_the_models_prefix_are_the_same_weights(tmp_path: Path, family: str) -> None:
    """Transformers writes such names for a decoder that was saved without its output head."""
    with_prefix = make_model(tmp_path / "with", family, tie_word_embeddings=True)
    bare = copy_model(
        with_prefix, tmp_path / "bare", lambda t: {k.removeprefix("model."): v for k, v in t.items()}
    )
    source, expected = SafetensorsSource(bare), SafetensorsSource(with_prefix)
    for name in weight_shapes(source.config):
        assert torch.equal(source.load(name), expected.load(name)), name


def test_an_empty_generation_configuration_says_nothing(tmp_path: Path, llama: Path) -> None:
    copy_model(llama, tmp_path)
    (tmp_path / "generation_config.json").write_bytes(b"")
    assert SafetensorsSource(tmp_path).config == SafetensorsSource(llama).config
    (tmp_path / "generation_config.json").write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"generation_config\.json is not JSON"):
        SafetensorsSource(tmp_path)


def test_index_may_not_name_a_file_elsewhere(tmp_path: Path, llama: Path) -> None:
    copy_model(llama, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "outside.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFile, match=r"outside\.safetensors"):
        SafetensorsSource(tmp_path / "model")


def test_empty_directory_says_what_it_lacks(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        SafetensorsSource(tmp_path)
    shutil.copy(llama / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelNotFound, match=r"no safetensors weights \(it has pytorch_model\.bin\)"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"text"'])
def test_configuration_that_is_no_object_is_refused(tmp_path: Path, llama: Path, content: bytes) -> None:
    copy_model(llama, tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        SafetensorsSource(tmp_path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), junk=st.binary(min_size=1, max_size=40), cut=st.booleans())
def test_damage_anywhere_gives_a_model_error_or_a_load(
    tmp_path: Path, llama: Path, at: float, junk: bytes, cut: bool
) -> None:
    copy_model(llama, tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    position = int(at**3 * (len(content) - 1))  # most of the damage goes to the header
    file.write_bytes(content[:position] + junk + (b"" if cut else content[position + len(junk) :]))
    try:
        source = SafetensorsSource(tmp_path)
        for name, shape in weight_shapes(source.config).items():
            assert source.load(name).shape == shape
    except ModelError:
        pass


_RESIDENT = """
import sys
from pathlib import Path
from interlace.models.hf.source import SafetensorsSource
from interlace.models.gguf.source import GgufSource

def resident_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))

path, rows = Path(sys.argv[1]), int(sys.argv[2])
source = SafetensorsSource(path) if path.is_dir() else GgufSource(path)
source.load("norm")
before = resident_kb()
part = source.load("embed", rows=range(rows))
part.sum()
loaded = resident_kb()
del part
source.release_pages()
print(loaded - before, resident_kb() - before)
"""


def resident_growth_kb(path: Path, rows: int) -> tuple[int, int]:
    """Memory that the first rows of the embedding take, mapped pages included; and what stays when let go."""
    run = subprocess.run(
        [sys.executable, "-c", _RESIDENT, str(path), str(rows)], capture_output=True, check=True
    )
    loaded, left = run.stdout.split()
    return int(loaded), int(left)


def test_half_the_rows_touch_half_the_memory(tmp_path: Path) -> None:
    rows = 100_000  # 25.6 MB
    make_model(tmp_path, "llama", vocab_size=rows)
    whole, left = resident_growth_kb(tmp_path, rows)
    half, _ = resident_growth_kb(tmp_path, rows // 2)
    assert whole > 24_000
    assert half < 0.6 * whole
    assert left < 0.2 * whole


@pytest.mark.parametrize(
    ("text", "says"), [("{", "is not JSON"), ("[]", "holds a JSON list, expected an object")]
)
def test_a_configuration_that_is_no_object_is_told_with_its_path_once(
    text: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        SafetensorsSource(tmp_path)
    assert str(error.value).count(str(tmp_path)) == 1
