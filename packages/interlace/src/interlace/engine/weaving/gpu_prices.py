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
    from tokenweave.stage_clock import StageClock
    from tokenweave.wave_table import TableKey, WaveTable


@runtime_checkable
class TakesCtas(Protocol):
    """A communicator whose reductions take as many CTAs as they are told."""

    def use_ctas(self, num_ctas: CtaTable) -> None:
        """Has later calls take those of a table by tokens. All ranks say it between the same two calls."""


@dataclass(frozen=True)
class PassCtas:
    """The CTAs of a group's reductions, in a pass over a batch that is whole and over one that is woven."""

    communicator: TakesCtas
    whole: CtaTable
    woven: CtaTable

    @property
    def left_sms(self) -> int:
        """SMs that products of woven passes leave: as many as the largest reductions have CTAs."""
        return self.woven.rows[-1][1]

    def take(self, is_woven: bool) -> None:
        """Has the reductions of the next pass take theirs. All ranks do, before the same pass."""
        self.communicator.use_ctas(self.woven if is_woven else self.whole)


@dataclass(frozen=True)
class GpuPrices:
    """One rank's part. Of table and peaks rank 0 has one where weaving depends on it; the other ranks have neither."""

    ctas: PassCtas | None = None  # None: the communicator does as it likes
    reduce: Curve | None = (
        None  # seconds of a whole batch's reductions, by tokens; None: nothing depends on them
    )
    reduce_part: Curve | None = None  # of those of a part of a woven batch
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
    """The CTAs of reductions of ranks on GPUs, and where weaving depends on it their times.

    A collective call, due once the group has room for activations. None where there is nothing to prepare: of ranks on
    processors, and of a single one.
    """
    config, kernels, communicator = job.config, job.kernels, job.communicator
    if kernels.device.type != "cuda" or communicator.size == 1:
        return None
    is_first = communicator.rank == 0
    table = load_table(table_directory(), job.key) if is_first else None
    ctas = agree_on_ctas(communicator, table)
    if config.weave != "auto" or config.executor != "lanes":
        return GpuPrices(ctas)
    clock: StageClock = EventClock(CudaEvents(communicator.wait_for))
    hidden_size, max_tokens = job.model.hidden_size, config.max_num_batched_tokens

    def reduce(is_woven: bool) -> Curve:
        if ctas is not None:
            ctas.take(is_woven)
        return measure_reductions(communicator, clock, hidden_size, job.dtype, max_tokens)

    whole = reduce(is_woven=False)
    part = whole if ctas is None else reduce(is_woven=True)
    needs_peaks = is_first and table is None
    peaks = measure_peaks(clock, kernels.device, job.dtype) if needs_peaks else None
    return GpuPrices(ctas, whole, part, table, peaks)


def agree_on_ctas(communicator: Communicator, table: WaveTable | None) -> PassCtas | None:
    """The CTAs of rank 0's `table`, on all ranks. A collective call.

    The other ranks bring None, for all have to take as many. None where there are none, or the communicator takes none.
    """
    sharing = None if table is None else table.sharing
    own = [] if sharing is None else [sharing.whole, sharing.woven]
    told = communicator.broadcast_bytes(json.dumps(own).encode() if communicator.rank == 0 else None)
    tables = [CtaTable(tuple((tokens, ctas) for tokens, ctas in rows)) for rows in json.loads(told)]
    if not tables or not isinstance(communicator, TakesCtas):
        return None
    return PassCtas(communicator, *tables)
