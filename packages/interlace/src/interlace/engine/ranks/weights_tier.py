"""WeightsTier: one rank's layers in a tier of memory, and room for two of them where kernels read.

Layers are written down once, as they are loaded, each before the next one is read. Layer l is always fetched into room
`l % WEIGHT_ROOMS`, so the addresses that kernels are given never change. The plan says when a room is free
(`tokenweave.plan`). Behind the last layer all are, and the first layers of the next pass begin to come.

Weights cannot be a miss: what the tier fails to give in time is an error that names it.

Invariants
1. `_held[room]` is the layer whose bytes are there, or on their way there; None: nobody's are.
2. A copy that is under way has its completion in `_coming`, and ends before `close` returns.

Thread safety: none; `fetch` and `fetch_first` are called by one lane at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from interlace.cache.kv_tier import KvTierSpec
from interlace.engine.cache.open_tier import open_tier
from interlace.engine.cache.tier_copies import CANCEL_S
from interlace.errors import EngineError
from interlace.models.layers import Layer
from tokenweave.kernels import PackedLinear
from tokenweave.kernels.memory import LINE_BYTES, Arena
from tokenweave.plan import WEIGHT_ROOMS

if TYPE_CHECKING:
    from emucxl import Buffer
    from emucxl.copy_engine import Completion, Copy


class WeightsTier:
    """The layers of one rank: a `LayerKeeper`."""

    def __init__(
        self,
        spec: KvTierSpec,
        num_layers: int,
        timeout_s: float,
        rank: int = 0,
        num_ranks: int = 1,
        least_bytes: int = 0,
    ) -> None:
        """Opens the tier. What takes `timeout_s` for a layer has failed, as the other ranks wait no longer.

        Raises:
            EngineError: it cannot work here, or has not the `least_bytes` that all layers take.
        """
        from emucxl import Context
        from emucxl.copy_engine import CopyEngine
        from emucxl.errors import EmucxlError

        self.spec, self.timeout_s, self._num_layers = spec, timeout_s, num_layers
        self.notices: list[str] = []
        try:
            self._context = Context(name=f"weights of rank {rank}")
        except EmucxlError as error:
            raise EngineError(f"a tier of weights cannot be opened: {error}") from error
        try:
            self._tier = open_tier(self._context, "weights", spec, rank, num_ranks, self.notices)
            if self._tier.capacity_bytes < least_bytes:
                raise EngineError(
                    f"the weights tier {spec.text!r} has {self._tier.capacity_bytes:,} bytes for this rank: expected "
                    f"at least {least_bytes:,}, which its share of the layers takes"
                )
            self._copies = CopyEngine(self._context)
        except BaseException:
            with suppress(EmucxlError):
                self._context.close()
            raise
        self._buffers: list[Buffer | None] = []  # of each layer; None: this rank has nothing of it
        self._rooms: list[Tensor] = []  # (most bytes of a layer,) uint8
        self._held: list[int | None] = [None] * WEIGHT_ROOMS
        self._coming: dict[int, Completion] = {}  # by layer

    @property
    def size_bytes(self) -> int:
        """Of all layers, which are in the tier."""
        return sum(map(_size_of, self._buffers))

    @property
    def local_bytes(self) -> int:
        """Of the rooms, which are in local memory."""
        return sum(room.nbytes for room in self._rooms)

    @property
    def pass_bytes(self) -> int:
        """Of what each pass fetches: all layers but one that has a room for itself, and stays there."""
        by_room = [self._buffers[room::WEIGHT_ROOMS] for room in range(WEIGHT_ROOMS)]
        return sum(sum(map(_size_of, buffers)) for buffers in by_room if len(buffers) > 1)

    def keep(self, layers: Iterator[Layer]) -> tuple[Layer, ...]:
        """Writes each of `layers` down before it asks for the next, and returns them with their matrices in the rooms.

        The first ones are there when it returns.

        Raises:
            EngineError: the tier has no room for them, or does not take or give one in time.
        """
        try:
            kept: list[Layer] = []
            for layer in layers:
                kept.append(self._written(layer))
                del layer  # or it would stay in local memory while the next one is read
            most_bytes = max(map(_size_of, self._buffers))
            self._rooms = [Arena(slab_bytes=0).take(most_bytes) for _ in range(WEIGHT_ROOMS)]
            placed = tuple(
                _laid_out(layer, _placer(self._rooms[at % WEIGHT_ROOMS])) for at, layer in enumerate(kept)
            )
            for first in range(min(WEIGHT_ROOMS, len(kept))):
                self.fetch(first)
            self._tell_of_cost()
        except BaseException:
            self.close()
            raise
        return placed

    def fetch(self, layer: int) -> None:
        """Returns once the matrices of `layer` are in its room, which nobody reads now.

        Raises:
            EngineError: they don't come in time, or cannot be read.
        """
        from emucxl.errors import EmucxlError

        what = f"give layer {layer}, {_size_of(self._buffers[layer]):,} bytes,"
        try:
            self._begin(layer)
        except EmucxlError as error:
            self._fail(what, f"({error})", error)
        completion = self._coming.get(layer)
        if completion is not None:
            self._wait(completion, what)
            del self._coming[layer]

    def fetch_first(self) -> None:
        """Begins to fetch what the next pass begins with: nobody reads a room before it."""
        from emucxl.errors import EmucxlError

        for layer in range(min(WEIGHT_ROOMS, len(self._buffers))):
            with suppress(EmucxlError):  # the next pass fails then, not the one that has run
                self._begin(layer)

    def close(self) -> None:
        """Ends what is under way, and gives the tier's memory back. Nothing can be fetched any more."""
        for completion in self._coming.values():
            completion.cancel()
        self._copies.close()
        self._coming.clear()
        self._buffers.clear()
        self._context.close()

    def _begin(self, layer: int) -> None:
        """Begins to fetch a layer, unless it is there or on its way."""
        from emucxl.copy_engine import Copy

        room, buffer = layer % WEIGHT_ROOMS, self._buffers[layer]
        if self._held[room] == layer:
            return
        self._held[room] = None
        if buffer is not None:
            copy = Copy(self._rooms[room].numpy(), buffer, buffer.size_bytes)
            self._coming[layer] = self._copies.submit([copy])
        self._held[room] = layer

    def _written(self, layer: Layer) -> Layer:
        """Writes a layer down. Returns it without the bytes of its matrices."""
        from emucxl.copy_engine import Copy
        from emucxl.errors import EmucxlError

        index, sizes = len(self._buffers), []
        places: list[tuple[int, Tensor]] = []

        def note(start_bytes: int, matrix: PackedLinear) -> PackedLinear:
            sizes.append(start_bytes + matrix.data.nbytes)
            places.append((start_bytes, matrix.data))
            return replace(matrix, data=torch.empty_like(matrix.data, device="meta"))

        emptied = _laid_out(layer, note)
        size_bytes = max(sizes)
        if not size_bytes:
            self._buffers.append(None)
            return emptied
        self._check_speed(size_bytes)
        try:
            buffer = self._tier.alloc(size_bytes)
        except (EmucxlError, OverflowError) as error:
            raise EngineError(
                f"the weights tier {self.spec.text!r} has no room for layer {index} of {self._num_layers}, "
                f"{size_bytes:,} bytes on this rank; as many layers like it take {size_bytes * self._num_layers:,}: "
                f"{error}"
            ) from error
        self._buffers.append(buffer)
        copies: list[Copy] = [
            Copy(buffer, data.view(torch.uint8).reshape(-1).numpy(), data.nbytes, destination_offset=start)
            for start, data in places
            if data.nbytes
        ]
        self._wait(self._copies.submit([*copies]), f"take layer {index}, {size_bytes:,} bytes,")
        return emptied

    def _check_speed(self, size_bytes: int) -> None:
        """Refuses a tier that is modelled as too slow for a layer, before one is waited for."""
        timing = self._tier.timing
        if timing is None:
            return
        for verb, gbps in (("give", timing.read_bandwidth_gbps), ("take", timing.write_bandwidth_gbps)):
            seconds = size_bytes / (gbps * 1e9) if gbps else 0.0
            if seconds > self.timeout_s:
                raise EngineError(
                    f"the weights tier {self.spec.text!r} is modelled to {verb} a layer of {size_bytes:,} bytes in "
                    f"{seconds:,.1f} s: expected at most timeout_s={self.timeout_s:g}; name a faster one"
                )

    def _wait(self, completion: Completion, what: str) -> None:
        from emucxl.errors import EmucxlError, WaitTimeout

        try:
            completion.wait(self.timeout_s)
        except WaitTimeout as error:
            completion.cancel()
            with suppress(EmucxlError):  # the room may go as soon as this raises
                completion.wait(CANCEL_S)
            self._fail(what, f"in timeout_s={self.timeout_s:g}", error)
        except EmucxlError as error:
            self._fail(what, f"({error})", error)

    def _fail(self, what: str, why: str, error: Exception) -> NoReturn:
        raise EngineError(
            f"the weights tier {self.spec.text!r} did not {what} {why}: there is no pass without it"
        ) from error

    def _tell_of_cost(self) -> None:
        """Notes what a pass costs: by the modelled bandwidth, or by that of a layer that is fetched once more."""
        size_bytes = self.pass_bytes
        if not size_bytes:
            return
        timing = self._tier.timing
        gbps = 0.0 if timing is None else timing.read_bandwidth_gbps
        label = "modelled" if gbps else "measured"
        self.notices.append(
            f"layers are in the weights tier {self.spec.text!r}, {size_bytes:,} bytes of which each pass fetches: "
            f"{size_bytes / (gbps or self._measured_gbps()) / 1e6:,.2f} ms, {label}. The computing of a long prompt "
            "hides it; a pass that decodes waits for most of it"
        )

    def _measured_gbps(self) -> float:
        """Bytes in a nanosecond. The room has been written before, so its pages are there."""
        layer = next(at for at in range(WEIGHT_ROOMS) if self._buffers[at] is not None)
        self._held[layer] = None
        start = time.perf_counter()
        self.fetch(layer)
        return _size_of(self._buffers[layer]) / (1e9 * (time.perf_counter() - start))


def _size_of(buffer: Buffer | None) -> int:
    return 0 if buffer is None else buffer.size_bytes


def _laid_out(layer: Layer, change: Callable[[int, PackedLinear], PackedLinear]) -> Layer:
    """The layer with its matrices as `change` makes them, which is told where in the layer's bytes each one begins."""
    start_bytes = 0

    def next_one(matrix: PackedLinear) -> PackedLinear:
        nonlocal start_bytes
        changed = change(start_bytes, matrix)
        start_bytes += -(-matrix.data.nbytes // LINE_BYTES) * LINE_BYTES
        return changed

    return layer.changed(next_one)


def _placer(room: Tensor) -> Callable[[int, PackedLinear], PackedLinear]:
    """Has a matrix read its bytes in `room`."""

    def place(start_bytes: int, matrix: PackedLinear) -> PackedLinear:
        bare = matrix.data
        data = room[start_bytes : start_bytes + bare.nbytes].view(bare.dtype).view(bare.shape)
        return replace(matrix, data=data)

    return place
