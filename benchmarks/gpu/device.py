"""The thing that a stage measures: a GPU, by CUDA events; in a dry run this processor, which interprets kernels.

A time is of a call, in microseconds. On a GPU calls are timed in graphs unless the stage says otherwise, so that the
host's part is not in it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from benchmarks.gpu.findings import NoDevice, NotRun
from tokenweave.streams import CudaStreams, HostStreams, StreamBackend

if TYPE_CHECKING:
    from tokenweave.kernels.cuda.one_device import OneDevice

Call = Callable[[], object]
Measure = Callable[[], float]
Function = TypeVar("Function", bound=Callable[..., Any])
RankKernel = Callable[[int, int], None]  # of a rank and a number of tokens

TIMEOUT_S = 2.0  # of a rank that waits for another in vain


class Device(ABC):
    """Where the tensors of a stage are, and how calls on them are timed."""

    kind: str  # as torch names it
    dtype: torch.dtype
    num_ranks: tuple[int, ...]  # groups that can be made of it

    @property
    @abstractmethod
    def name(self) -> str:
        """The device, as its maker calls it."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits until all that was issued is done."""

    @abstractmethod
    def captured(self, call: Call, calls: int = 1) -> Call:
        """A CUDA graph of `calls` calls, made after one that is not part of it; calling it replays the graph."""

    @abstractmethod
    def compiled(self, function: Function) -> Function:
        """`function`, compiled by torch when it is first called with each kind of arguments."""

    @abstractmethod
    def timed(self, call: Call, calls: int = 1) -> Measure:
        """Times `call`, which is worth `calls` calls."""

    @abstractmethod
    def streams(self) -> StreamBackend[Any, Any]:
        """For a `StreamExecutor`."""

    @abstractmethod
    def on_all_ranks(self, ranks: OneDevice, kernel: RankKernel, num_tokens: int) -> None:
        """Launches every rank's `kernel`."""

    def replayed(self, call: Call, calls: int = 1) -> Measure:
        """Times `calls` calls of `call` in a graph."""
        return self.timed(self.captured(call, calls), calls)

    def issued(self, call: Call, calls: int = 1) -> Measure:
        """Times the host's part of each of `calls` calls: until it has issued them; the device may still be at it."""

        def measure() -> float:
            self.synchronize()
            begin_s = time.perf_counter()
            for _ in range(calls):
                call()
            took_s = time.perf_counter() - begin_s
            self.synchronize()
            return 1e6 * took_s / calls

        return measure

    def walled(self, call: Call, calls: int = 1) -> Measure:
        """Times each of `calls` calls of `call` by the host's clock: from an idle device until it is idle again."""

        def measure() -> float:
            self.synchronize()
            begin_s = time.perf_counter()
            for _ in range(calls):
                call()
            self.synchronize()
            return 1e6 * (time.perf_counter() - begin_s) / calls

        return measure

    def ranks(self, size: int, num_tokens: int, hidden_size: int, num_ctas: int) -> OneDevice:
        """`size` ranks that share the device.

        Raises:
            NotRun: Triton is not installed.
        """
        try:
            from tokenweave.kernels.cuda.one_device import OneDevice
        except ImportError as error:
            raise NotRun(f"{error}: pip install triton") from None
        return OneDevice(
            size,
            num_tokens,
            hidden_size,
            self.dtype,
            device=self.kind,
            num_ctas=num_ctas,
            timeout_s=TIMEOUT_S,
        )

    def random(self, *shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
        """Normally distributed values."""
        generator = torch.Generator(device=self.kind).manual_seed(seed)
        values = torch.randn(shape, generator=generator, device=self.kind, dtype=torch.float32)
        return values.mul_(scale).to(self.dtype)


class Gpu(Device):
    """The current CUDA device."""

    kind, dtype, num_ranks = "cuda", torch.bfloat16, (2, 4)

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def captured(self, call: Call, calls: int = 1) -> Call:
        call()  # compiles kernels, makes handles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
        graph.replay()
        torch.cuda.synchronize()
        return graph.replay

    def compiled(self, function: Function) -> Function:
        return cast("Function", torch.compile(function))

    def timed(self, call: Call, calls: int = 1) -> Measure:
        event: Any = torch.cuda.Event  # untyped in torch

        def measure() -> float:
            begin, end = (event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            return 1e3 * float(begin.elapsed_time(end)) / calls

        return measure

    def streams(self) -> StreamBackend[Any, Any]:
        return CudaStreams()

    def on_all_ranks(self, ranks: OneDevice, kernel: RankKernel, num_tokens: int) -> None:
        ranks.on_all_ranks(kernel, num_tokens)


class StandIn(Device):
    """This processor in a GPU's place. Ranks would wait for each other for ever, so a group is of one."""

    kind, dtype, num_ranks = "cpu", torch.float32, (1,)

    @property
    def name(self) -> str:
        return "this processor, in a GPU's place"

    def synchronize(self) -> None:
        pass

    def captured(self, call: Call, calls: int = 1) -> Call:
        call()

        def replay() -> None:
            for _ in range(calls):
                call()

        return replay

    def compiled(self, function: Function) -> Function:
        """As it is: to trace it takes seconds, to compile it for a processor more."""
        return function

    def timed(self, call: Call, calls: int = 1) -> Measure:
        def measure() -> float:
            begin_s = time.perf_counter()
            call()
            return 1e6 * (time.perf_counter() - begin_s) / calls

        return measure

    def streams(self) -> StreamBackend[Any, Any]:
        return HostStreams()

    def on_all_ranks(self, ranks: OneDevice, kernel: RankKernel, num_tokens: int) -> None:
        for rank in range(ranks.size):
            kernel(rank, num_tokens)


def open_device(is_dry_run: bool) -> Device:
    """The device of a stage.

    Raises:
        NoDevice: there is no GPU, and it is no dry run.
    """
    if is_dry_run:
        return StandIn()
    if not torch.cuda.is_available():
        built = "for CPUs only" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
        raise NoDevice(f"there is no CUDA device (torch {torch.__version__} is built {built})")
    return Gpu()


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference over that of what is expected."""
    difference = got.double() - expected.double()
    return float(difference.norm() / expected.double().norm())


def check_close(what: str, got: torch.Tensor, expected: torch.Tensor, bound: float) -> float:
    """The relative error.

    Raises:
        ArithmeticError: it is not below `bound`, which NaN never is.
    """
    error = relative_error(got, expected)
    if not error < bound:
        raise ArithmeticError(f"{what} is off by {error:.1e} of its size; {bound:.0e} is allowed")
    return error
