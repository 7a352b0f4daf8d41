"""Random weights, made where they are used: 16 GB are written in a second by a GPU, and in minutes by a host."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from interlace.models.config import ModelConfig, weight_shapes
from interlace.models.weights import WeightSource

STD = 0.02  # as Llama is initialised
JOINED = ("q", "k", "v")  # lie one below the other, so that they can be multiplied as one as well


class RandomWeights(WeightSource):
    """Normally distributed matrices and norms about 1, in the memory of `device`: what it gives are views of them."""

    def __init__(self, config: ModelConfig, device: Device, dtype: torch.dtype | None = None) -> None:
        super().__init__(config, ())
        self.dtype = dtype or device.dtype
        self._kind = device.kind
        self._generator = torch.Generator(device=device.kind).manual_seed(0)
        self._tensors = dict(self._made())

    def __getitem__(self, name: str) -> Tensor:
        """The whole of a weight by its canonical name, or of q, k and v of a layer: "layers.3.qkv"."""
        return self._tensors[name]

    @property
    def names(self) -> list[str]:
        """The canonical names of all weights."""
        return list(self._shapes)

    def release_pages(self) -> None:
        """There are none."""

    def _made(self) -> Iterator[tuple[str, Tensor]]:
        shapes = weight_shapes(self.config)
        for layer in range(self.config.num_layers):
            names = [f"layers.{layer}.{part}" for part in JOINED]
            rows = [shapes.pop(name)[0] for name in names]
            joined = self._random(sum(rows), self.config.hidden_size)
            yield f"layers.{layer}.qkv", joined
            yield from zip(names, torch.split(joined, rows), strict=True)
        for name, shape in shapes.items():
            yield name, self._random(*shape)

    def _random(self, *shape: int) -> Tensor:
        values = torch.empty(shape, dtype=self.dtype, device=self._kind)
        return values.normal_(1.0 if len(shape) == 1 else 0.0, STD, generator=self._generator)

    def _read(self, name: str, rows: range, columns: range) -> Tensor:
        found = self[name][rows.start : rows.stop]
        return found if found.dim() == 1 else found[:, columns.start : columns.stop].contiguous()
