"""The weight map: where each canonical weight lies in a file, for the two formats models are published in.

A map gives, for a canonical name ("layers.3.q", see `weight_shapes`), the places it may lie, best first. The names are
in the families' records (`interlace.models.families`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from interlace.errors import ConfigError
from interlace.models.config import ModelConfig, weight_shapes
from interlace.models.families import GGUF_MODEL, HF_MODEL, GgufFormat, Tensors, family_of


@dataclass(frozen=True)
class Place:
    """A tensor of a file, one expert's matrix in a tensor (experts, rows, columns) of all, or some of its rows."""

    tensor: str
    expert: int | None = None
    first_row: int = 0
    num_rows: int | None = None  # of the whole tensor, where it holds more than this weight


Places = Callable[[str], list[Place]]

_HF_BASE = "model."  # what precedes a tensor's name, unless the decoder was saved without its output head


def hf_places(config: ModelConfig) -> Places:
    """Where transformers' safetensors keep the weights of a model."""
    layer_tensors = family_of(config.family).hf.layer
    windows = _row_windows(config, layer_tensors)

    def places(name: str) -> list[Place]:
        layer, part, expert = _parsed(name)
        if layer is None:
            tensor = HF_MODEL[part]
        else:
            tensor = f"model.layers.{layer}." + layer_tensors[part].format(expert=expert)
        return [
            Place(found, None, *windows.get(name, (0, None)))
            for found in dict.fromkeys((tensor, tensor.removeprefix(_HF_BASE)))
        ]

    return places


def gguf_places(config: ModelConfig) -> Places:
    """Where llama.cpp's files keep them. Experts are stacked in one tensor; oldest files have one each."""
    layer_tensors = gguf_format(config).layer
    windows = _row_windows(config, layer_tensors)

    def places(name: str) -> list[Place]:
        layer, part, expert = _parsed(name)
        if layer is None:
            return [Place(GGUF_MODEL[part])]
        tensor = f"blk.{layer}.{layer_tensors[part]}"
        if expert is None:
            return [Place(tensor, None, *windows.get(name, (0, None)))]
        alone = f"blk.{layer}.ffn_{part.removeprefix('experts.')}.{expert}.weight"
        return [Place(tensor, int(expert)), Place(alone)]

    return places


def gguf_format(config: ModelConfig) -> GgufFormat:
    """How GGUF files keep a model. Raises ConfigError for a family that has none of its own."""
    found = family_of(config.family).gguf
    if found is None:
        raise ConfigError(f"there are no GGUF files of {config.family} models; they are those of llama")
    return found


def _parsed(name: str) -> tuple[str | None, str, str | None]:
    """The layer, the part and the expert of a canonical name: "layers.3.experts.7.up" -> 3, "experts.up", 7."""
    match name.split("."):
        case [top]:
            return None, top, None
        case ["layers", layer, "experts", expert, part]:
            return layer, f"experts.{part}", expert
        case ["layers", layer, *part]:
            return layer, ".".join(part), None
    raise KeyError(name)


def _row_windows(config: ModelConfig, layer_tensors: Tensors) -> Mapping[str, tuple[int, int]]:
    """Where weights that share a tensor begin in it, and the rows of the whole: they lie one after the other."""
    shapes = weight_shapes(config)
    windows: dict[str, tuple[int, int]] = {}
    for layer in range(config.num_layers):
        sharing: dict[str, list[str]] = {}
        for part, tensor in layer_tensors.items():
            if (name := f"layers.{layer}.{part}") in shapes:
                sharing.setdefault(tensor, []).append(name)
        for names in sharing.values():
            if len(names) > 1:
                sizes = [shapes[name][0] for name in names]
                starts = [sum(sizes[:index]) for index in range(len(names))]
                windows |= {name: (start, sum(sizes)) for name, start in zip(names, starts, strict=True)}
    return windows
