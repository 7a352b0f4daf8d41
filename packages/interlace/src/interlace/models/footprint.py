"""The bytes of a rank's matrices in memory, from a model's configuration and the formats that they are held in.

Nothing of the weights is read. What packing adds, at most 4 % of a matrix in blocks, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from interlace.models.config import ModelConfig, weight_shapes
from interlace.models.matrix_reader import MADE
from interlace.models.shard import Shard
from interlace.models.weights import WeightSource
from tokenweave.kernels import FORMATS, QuantFormat

_ALWAYS_DENSE = ("router", "shared_gate")
_JOINED_WITH = {
    "k": "q",
    "v": "q",
    "up": "gate",
}  # matrices that are multiplied as one are all dense or all blocks

_FP8 = QuantFormat("fp8", -1, 1, 1, 1, False)  # no format of files; the scales of rows are left out

Formats = Mapping[str, QuantFormat]  # of the matrices that are held in blocks, by canonical name


def resolve_quantize(quantize: str, dtype: str, source: WeightSource) -> str:
    """The way in which an engine holds weights: `quantize`, or for "auto" what the model's files and `dtype` ask for.

    "stored" where the files have weights in blocks that the kernels multiply. "none", dense, where they have none, and
    where a dtype is named: it is that of the weights.
    """
    if quantize != "auto":
        return quantize
    return "stored" if dtype == "auto" and formats_of(source, "stored") else "none"


def formats_of(source: WeightSource, quantize: str) -> Formats:
    """The formats of the blocks that an engine with `quantize` holds: those that `MatrixReader` chooses."""
    if quantize == "none":
        return {}
    formats = {name: _format_of(source, name, width, quantize) for name, _, width in _matrices(source.config)}
    dense = {_stack_of(name) for name, form in formats.items() if form is None}
    in_fp8 = {_stack_of(name) for name, form in formats.items() if form is _FP8}
    formats = {name: _FP8 if _stack_of(name) in in_fp8 else form for name, form in formats.items()}
    return {name: form for name, form in formats.items() if form and _stack_of(name) not in dense}


def weights_name(source: WeightSource, quantize: str) -> str:
    """A name for the weights that are multiplied: "none", where they are dense, or with the formats of the file."""
    if quantize != "stored":
        return quantize
    names = sorted({form.name for form in formats_of(source, quantize).values()})
    return "+".join(["stored", *names]) if names else "none"


def weights_bytes(config: ModelConfig, shard: Shard, value_bytes: int, formats: Formats) -> int:
    """A rank's share of the weights; norms and biases, a few thousand numbers, are left out."""
    return _bytes_of(_matrices(config), config, shard, value_bytes, formats)


def layers_bytes(config: ModelConfig, shard: Shard, value_bytes: int, formats: Formats) -> int:
    """As `weights_bytes`, of the layers: without the embedding and the output head."""
    matrices = (each for each in _matrices(config) if each[0].startswith("layers."))
    return _bytes_of(matrices, config, shard, value_bytes, formats)


def _bytes_of(
    matrices: Iterable[tuple[str, int, int]],
    config: ModelConfig,
    shard: Shard,
    value_bytes: int,
    formats: Formats,
) -> int:
    dense, blocks = 0, 0.0
    for name, num_rows, width in matrices:
        values = _own_values(config, shard, name, num_rows, width)
        if name in formats:
            blocks += values * formats[name].bits_per_value / 8
        else:
            dense += values
    return dense * value_bytes + round(blocks)


def _matrices(config: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """The name of each matrix, its rows and its columns."""
    for name, shape in weight_shapes(config).items():
        if len(shape) == 2:
            yield name, shape[0], shape[1]


def _format_of(source: WeightSource, name: str, width: int, quantize: str) -> QuantFormat | None:
    if _part_of(name) in _ALWAYS_DENSE:
        return None
    stored = FORMATS.get(source.quantised_as(name) or "")
    made = _FP8 if quantize == "fp8" else MADE.get(quantize)
    if stored is not None or made is None:
        return stored
    return None if width % made.block_values else made


def _own_values(config: ModelConfig, shard: Shard, name: str, num_rows: int, width: int) -> int:
    """The values of a matrix that the rank holds."""
    part, heads, kv_heads = _part_of(name), len(shard.heads), len(shard.kv_heads)
    if part in ("embed", "lm_head"):
        return len(shard.vocab) * width
    if part in ("gate", "up"):
        return len(shard.columns(num_rows)) * width
    if part == "down":
        return num_rows * len(shard.columns(width))
    if part == "o":
        return num_rows * heads * config.head_dim
    if part == "v" or (part in ("q", "k") and not config.qk_norm_over_heads):
        return (heads if part == "q" else kv_heads) * config.head_dim * width
    return num_rows * width  # all of it


def _part_of(name: str) -> str:
    return name.rpartition(".")[2]


def _stack_of(name: str) -> str:
    """The matrix that begins the stack."""
    before, dot, part = name.rpartition(".")
    return before + dot + _JOINED_WITH.get(part, part)
