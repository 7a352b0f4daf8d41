"""LayerKeeper: who keeps the layers' weights elsewhere than where kernels read them, and brings them in time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from interlace.models.layers import Layer


class LayerKeeper(Protocol):
    """Keeps the matrices of a decoder's layers, and has room where kernels read them for a few layers at a time."""

    def keep(self, layers: Iterator[Layer]) -> tuple[Layer, ...]:
        """Takes each layer before it asks for the next. Returns them with their matrices in the room of each, which
        have the bytes of a layer only from `fetch` on: until the room is another layer's."""

    def fetch(self, layer: int) -> None:
        """Returns once the matrices of `layer` are in its room: `layer % WEIGHT_ROOMS`, which nobody reads now."""

    def fetch_first(self) -> None:
        """Begins to fetch what the next pass begins with: nobody reads a room before it."""
