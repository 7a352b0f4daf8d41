"""Graphs: work of a device that is captured once, and from then on queued by one call of the host.

Thread safety: one thread at a time for each backend; several threads may capture on backends of their own.

Invariants
1. What is captured reads and writes the same memory each time that it is replayed. What the work allocates is of the
   backend's pool; what it reads besides has to outlive the graph and must not move.
2. All graphs of a backend have their memory in one pool, for no two of them run at once: a pool is as large as the
   largest needs. So what a graph computes is to be copied to memory of the caller's own within the work, for the next
   capture may be given the same memory.
3. Within a capture the host waits for nothing and reads nothing of the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tokenweave.errors import GraphError

if TYPE_CHECKING:
    import torch


class Graph(Protocol):
    """Work that was captured."""

    def replay(self) -> None:
        """Queues the work on the caller's current stream, once more. The host does not wait for it."""


class GraphBackend(Protocol):
    """Captures graphs. `CudaGraphs`; in tests one that does the same work again."""

    def capture(self, work: Callable[[], object]) -> Graph:
        """Does what `work` issues once, and captures it. What is queued on the caller's stream afterwards sees it done.

        `work` is called twice or more. Each time it issues the same work, to the current stream and to streams that
        fork from it and join it again. It is kept as long as the graph, with all that it refers to.

        Raises:
            GraphError: it was done, but cannot be captured.
            Whatever `work` raised when it was first called.
        """


@dataclass(frozen=True)
class _CudaGraph:
    """A graph, and the work that it was made of, which holds the memory that it reads."""

    graph: torch.cuda.CUDAGraph
    work: Callable[[], object]

    def replay(self) -> None:
        self.graph.replay()


class CudaGraphs:
    """CUDA graphs of one device, in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        """Raises RuntimeError where this torch, or this machine, has no CUDA."""
        import torch

        self._torch, self._device = torch, device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], object]) -> Graph:
        """As every backend does. A capture takes some milliseconds more than the work, and waits for the device."""
        cuda = self._torch.cuda
        with cuda.device(self._device):
            caller = cuda.current_stream()
            self._stream.wait_stream(caller)
            # On the stream of the captures: there cuBLAS gets its workspace, and Triton compiles what is new to it.
            with cuda.stream(self._stream):
                work()
            caller.wait_stream(self._stream)
            graph = cuda.CUDAGraph()
            with cuda.stream(caller):  # which torch does not go back to where a capture fails
                self._capture(graph, work)
        return _CudaGraph(graph, work)

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Callable[[], object]) -> None:
        torch = self._torch
        try:
            # Other threads may do what a capture forbids: they answer requests, and watch over collectives.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                work()
        except torch.OutOfMemoryError as error:
            raise GraphError(f"the device has no memory left for a graph: {_first_line(error)}") from error
        except RuntimeError as error:
            raise GraphError(f"the work cannot be captured: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Torch's message, without the advice that follows it."""
    return str(error).partition("\n")[0]
