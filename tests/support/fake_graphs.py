"""FakeGraphs: graphs without a GPU. A replay does the work again, and must find it as it was when it was captured."""

from __future__ import annotations

from collections.abc import Callable

import torch

from support.operations import FROM_HOST, WAITING, OnlyOn
from tokenweave.graphs import Graph


class Capturing(OnlyOn):
    """Fails where the work would not go into a graph: the host waits, or gives what only it has.

    `index` may wait, for it may be given a mask; where its indices are numbers it does not, and gives their shape.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function.overloadpacket.__name__
        is_choice = name in {"index", "index_put_"} and not any(
            index.dtype in {torch.bool, torch.uint8} for index in args[1] if index is not None
        )
        assert name not in WAITING or is_choice, f"in a capture the host waits: {function}"
        assert name not in FROM_HOST, f"in a capture the host brings a tensor: {function}"
        return super().__torch_dispatch__(function, types, args, kwargs)


class FakeGraph:
    """Work that was captured, and the operations that it was made of."""

    def __init__(self, work: Callable[[], object], device: torch.device) -> None:
        self._work, self._device = work, device
        self.taken = self._watched()
        self.num_replays = 0

    def replay(self) -> None:
        assert self._watched() == self.taken, "a replay of other work than was captured"
        self.num_replays += 1

    def _watched(self) -> list[tuple[str, list[tuple[int, ...]]]]:
        with Capturing(self._device) as operations:
            self._work()
        return operations.taken


class FakeGraphs:
    """Graphs of a device that may be `meta`, or the CPU for kernels that are interpreted there.

    A capture does the work twice, and watches the second time, in which a GPU would only write it down.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self.captured: list[FakeGraph] = []

    def capture(self, work: Callable[[], object]) -> Graph:
        work()
        self.captured.append(FakeGraph(work, self._device))
        return self.captured[-1]

    @property
    def num_replays(self) -> int:
        return sum(graph.num_replays for graph in self.captured)
