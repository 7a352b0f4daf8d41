"""Prices of ranks on GPUs, found before the first batch: how many CTAs reductions take, how long, what else is known.

The number of CTAs is that of the machine's wave table, if it has one. The times of reductions are the group's own: a
table was measured by threads of one process, over peer pointers, and the group may have a switch, or another
communicator.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from interlace.engine.weaving.this_machine import table_directory, table_key
from tokenweave.device_timing import measure_peaks, measure_reductions
from tokenweave.kernels.cuda.sharing import CtaTable
from tokenweave.stage_clock import CudaEvents, EventClock
from tokenweave.wave_table import load_table

if TYPE_CHECKING:
    import torch

    from interlace.engine.config import EngineConfig
    from interlace.models.config import ModelConfig
    from tokenweave.communicators import Communicator
    from tokenweave.cost import Peaks
    from tokenweave.curves import Curve
    from tokenweave.kernels import Kernels
    from tokenweave.sm_sharing import CtaRows
    from tokenweave.stage_clock import StageClock
    from tokenweave.wave_table import TableKey, WaveTable


@runtime_checkable
class TakesCtas(Protocol):
    """A communicator whose reductions take as many CTAs as they are told."""

    def use_ctas(self, num_ctas: CtaTable) -> None:
        """Has later calls take those of a table by tokens."""


@dataclass(frozen=True)
class GpuPrices:
    """One rank's part. Of table and peaks rank 0 has one where weaving depends on it; the other ranks have neither."""

    left_sms: int = 0  # those that products of woven plans leave: the CTAs of the largest reductions, if told
    reduce: Curve | None = None  # seconds of the group's reductions, by tokens; None: nothing depends on them
    table: WaveTable | None = None  # this machine's
    peaks: Peaks | None = None  # of the device, where nobody has measured a table


@dataclass(frozen=True)
class GpuJob:
    """All that prices depend on: the model, what computes it, and how."""

    config: EngineConfig
    model: ModelConfig
    communicator: Communicator
    kernels: Kernels
    dtype: torch.dtype
    weights_name: str

    @property
    def key(self) -> TableKey:
        """The key of its wave table."""
        return table_key(self.model, self.communicator.size, self.kernels, self.dtype, self.weights_name)


def prepare_gpus(job: GpuJob) -> GpuPrices | None:
    """Has the reductions of ranks on GPUs take the table's CTAs, and times them where weaving depends on it.

    A collective call, due once the group has room for activations. None where there is nothing to prepare: of ranks on
    processors, and of a single one.
    """
    config, kernels, communicator = job.config, job.kernels, job.communicator
    if kernels.device.type != "cuda" or communicator.size == 1:
        return None
    is_first = communicator.rank == 0
    table = load_table(table_directory(), job.key) if is_first else None
    left_sms = take_ctas(communicator, table)
    if config.weave != "auto" or config.executor != "lanes":
        return GpuPrices(left_sms)
    clock: StageClock = EventClock(CudaEvents(communicator.wait_for))
    hidden_size, max_tokens = job.model.hidden_size, config.max_num_batched_tokens
    reduce = measure_reductions(communicator, clock, hidden_size, job.dtype, max_tokens)
    needs_peaks = is_first and table is None
    peaks = measure_peaks(clock, kernels.device, job.dtype) if needs_peaks else None
    return GpuPrices(left_sms, reduce, table, peaks)


def take_ctas(communicator: Communicator, table: WaveTable | None) -> int:
    """Has reductions take the CTAs of rank 0's `table`, if it has some. A collective call.

    The other ranks bring None: it is rank 0's table that counts, for all ranks have to take as many. Returns how many
    the largest reductions take; 0 where the communicator does as it likes.
    """
    own: CtaRows = () if table is None or table.sharing is None else table.sharing.ctas
    told = communicator.broadcast_bytes(json.dumps(own).encode() if communicator.rank == 0 else None)
    rows = tuple((int(tokens), int(num_ctas)) for tokens, num_ctas in json.loads(told))
    if not rows or not isinstance(communicator, TakesCtas):
        return 0
    communicator.use_ctas(CtaTable(rows))
    return rows[-1][1]


def left_sms_of(prices: GpuPrices | None) -> int:
    """SMs that products leave to reductions beside them."""
    return 0 if prices is None else prices.left_sms
