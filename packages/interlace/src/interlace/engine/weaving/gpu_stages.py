"""Timing of stages on GPUs: all ranks in this process, a thread and a stream each, one or several to a device.

No GPU has run it yet. What is not torch's is an argument: in tests a device that writes down what it is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch

from interlace.engine.weaving.rank_stages import DeviceStages, RankStages
from interlace.engine.weaving.stage_timing import ThreadedStages
from interlace.engine.weaving.this_machine import row_tile, table_key
from tokenweave.errors import TuneError
from tokenweave.host_costs import HostCosts
from tokenweave.host_timing import measure_stream_switch_s
from tokenweave.kernels import Kernels, make_kernels
from tokenweave.kernels.cuda.devices import separate_pairs
from tokenweave.sm_carveout import SmCarveout
from tokenweave.stage_clock import CudaEvents, EventClock
from tokenweave.streams import CudaStreams
from tokenweave.tune import measure_table

if TYPE_CHECKING:
    from interlace.models.config import ModelConfig
    from interlace.models.decoder import Decoder
    from interlace.models.footprint import Formats
    from tokenweave.communicators import Communicator
    from tokenweave.streams import StreamBackend
    from tokenweave.tune import Progress
    from tokenweave.wave_table import WaveTable

CTAS = (2, 4, 8, 16)  # published: what reductions were run with
ISSUED_TOKENS = 16  # of the layer whose launches are timed: as many launches as for any number
TIMEOUT_S = 30.0  # of a rank that waits for another, the compilation of its kernels included


class Gpus(Protocol):
    """The GPUs of some ranks, as `GpuStages` uses them. `CudaGpus`; in tests the processor with a made-up clock."""

    size: int  # ranks
    num_devices: int
    num_sms: int

    def group(self) -> Sequence[Communicator]:
        """The communicators of all ranks; those of several have `use_ctas`."""

    def join(self, communicator: Communicator, num_ctas: int) -> None:
        """Has the rank of this thread meet the others, with room for so many CTAs. A collective."""

    def on(self, rank: int) -> AbstractContextManager[object]:
        """The context in which what is issued goes to the rank's own stream."""

    def kernels(self, rank: int) -> Kernels:
        """New kernels on the rank's device."""

    def clock(self, rank: int) -> EventClock[Any]:
        """The clock of the rank's stream, made `on` it."""

    def streams(self, rank: int) -> StreamBackend[Any, Any]:
        """New streams for the lanes of the rank."""

    def carve_out(self, num_sms: int) -> AbstractContextManager[object]:
        """The context in which the products of all ranks leave so many SMs."""


class GpuStages(ThreadedStages):
    """The ranks of a model on GPUs."""

    def __init__(
        self,
        config: ModelConfig,
        gpus: Gpus,
        dtype: torch.dtype,
        max_tokens: int,
        quantize: str = "none",
        formats: Formats | None = None,
        ctas: tuple[int, ...] = CTAS,
    ) -> None:
        """`formats` as for `HostStages`; `ctas`: the numbers of CTAs that reductions are timed with, ascending.

        Raises:
            TuneError: the device has no more SMs than a reduction is to take.
        """
        if ctas[-1] >= gpus.num_sms:
            raise TuneError(
                f"got reductions of {ctas[-1]} CTAs on a device of {gpus.num_sms} SMs; expected SMs left"
            )
        super().__init__(config, gpus.size, dtype, max_tokens, quantize, formats, gpus.num_devices)
        self._gpus, self._most_ctas = gpus, ctas[-1]
        self.num_sms, self.ctas = gpus.num_sms, ctas if gpus.size > 1 else ()
        self._start(gpus.group())

    def host_costs(self) -> HostCosts:
        """Of one rank: the threads of all would keep each other from issuing, as the processes of an engine do not."""
        future = self._pool.submit(self._measure_host)
        return future.result()

    @torch.inference_mode()
    def _measure_host(self) -> HostCosts:
        first = self._ranks[0]
        assert isinstance(first, DeviceStages)
        with self._inside(0):
            one = torch.zeros(1, device=first.decoder.kernels.device)
            num_tokens = min(ISSUED_TOKENS, self._max_tokens)
            issue_s = min(first.issue_s(num_tokens) for _ in range(5))
            switch_s = measure_stream_switch_s(first.events, self._gpus.streams(0), one.zero_)
        return HostCosts(switch_s=switch_s, issue_s=issue_s)

    def _kernels(self, rank: int) -> Kernels:
        return self._gpus.kernels(rank)

    def _stages(self, decoder: Decoder) -> RankStages:
        clock = self._gpus.clock(decoder.communicator.rank)
        return DeviceStages(decoder, self.layers, self._max_tokens, clock)

    def _inside(self, rank: int) -> AbstractContextManager[object]:
        return self._gpus.on(rank)

    def _join(self, communicator: Communicator) -> None:
        if self.size > 1:
            self._gpus.join(communicator, self._most_ctas)

    def _reducing(self, num_ctas: int) -> AbstractContextManager[object]:
        for communicator in self._communicators if self.ctas else ():
            communicator.use_ctas(num_ctas or self._most_ctas)  # type: ignore[attr-defined]
        return nullcontext()

    def _leaving(self, num_sms: int) -> AbstractContextManager[object]:
        """The switch is the process's: it is set here, once for all ranks."""
        return self._gpus.carve_out(num_sms) if num_sms else nullcontext()


def measure_gpus(
    config: ModelConfig,
    gpus: Gpus,
    dtype: torch.dtype,
    max_tokens: int = 4096,
    budget_s: float = 60.0,
    progress: Progress | None = None,
) -> WaveTable:
    """The wave table of a model of dense weights on `gpus`: what `interlace tune --device cuda` measures."""
    kernels = gpus.kernels(0)
    with GpuStages(config, gpus, dtype, max_tokens) as stages:
        return measure_table(
            stages,
            table_key(config, gpus.size, kernels, dtype),
            max_tokens=max_tokens,
            row_tile=row_tile(kernels),
            budget_s=budget_s,
            progress=progress,
        )


class CudaGpus:
    """torch.cuda's devices: rank `r` is on device `r`, or where there are fewer, on those in turn."""

    def __init__(self, size: int, kernels: str = "cuda", devices: Sequence[int] | None = None) -> None:
        """`kernels`: their name; `devices`: all visible ones unless given."""
        found = list(range(torch.cuda.device_count())) if devices is None else list(devices)
        if not found:
            raise TuneError("there is no CUDA device; without --device cuda the processor is measured")
        self.size, self._name = size, kernels
        self._devices = [torch.device("cuda", found[rank % len(found)]) for rank in range(size)]
        self.num_devices = len(set(self._devices))
        used = set(found[:size])
        if separate := [pair for pair in separate_pairs() if set(pair) <= used]:
            pairs = ", ".join(f"{one} and {two}" for one, two in separate)
            raise TuneError(
                f"devices {pairs} do not reach each other's memory; expected that all do, as reductions are timed "
                "through it"
            )
        self.num_sms = min(
            torch.cuda.get_device_properties(device).multi_processor_count for device in self._devices
        )
        self._streams = [torch.cuda.Stream(device) for device in self._devices]  # type: ignore[no-untyped-call]

    def group(self) -> Sequence[Communicator]:
        from interlace.engine.weaving.fused_threads import fused_thread_group
        from tokenweave.communicators.null import NullCommunicator

        return fused_thread_group(self.size, timeout_s=TIMEOUT_S) if self.size > 1 else [NullCommunicator()]

    def join(self, communicator: Communicator, num_ctas: int) -> None:
        from interlace.engine.weaving.fused_threads import FusedThreadCommunicator

        assert isinstance(communicator, FusedThreadCommunicator)
        communicator.open(self._devices[communicator.rank], num_ctas)

    @contextmanager
    def on(self, rank: int) -> Iterator[None]:
        with torch.cuda.device(self._devices[rank]), torch.cuda.stream(self._streams[rank]):
            yield

    def kernels(self, rank: int) -> Kernels:
        return make_kernels(self._name, device=self._devices[rank])

    def clock(self, rank: int) -> EventClock[Any]:
        return EventClock(CudaEvents())

    def streams(self, rank: int) -> StreamBackend[Any, Any]:
        return CudaStreams(self._devices[rank])

    def carve_out(self, num_sms: int) -> AbstractContextManager[object]:
        return SmCarveout(num_sms)
