"""Weaver: rank 0's decision, once for each batch, whether its tokens are cut in two and where.

The plan of each candidate is priced by the simulator, from this machine's wave table if `interlace tune` measured one
and otherwise from FLOPs and bytes. On GPUs the group has timed its own reductions (`gpu_prices`). Prices take
milliseconds and batches come in thousands, so a decision is kept and holds for batches alike: of about as many tokens,
with about as much attention, about as far ahead.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from emucxl import resources
from interlace.engine.weaving.table_key import kinds_of_layers
from interlace.engine.weaving.this_machine import row_tile, table_directory, table_key
from interlace.models.shard import Shard
from tokenweave import native
from tokenweave.cost import CostModel, LinkSpeed, Peaks, analytic_gpu_table, analytic_table
from tokenweave.geometry import BatchGeometry
from tokenweave.kernels import NativeKernels
from tokenweave.plan import plan_forward
from tokenweave.sm_sharing import SmSharing
from tokenweave.split import (
    GUARD,
    Choice,
    LayerSample,
    alignment_of,
    candidates,
    choose_split,
    gpu_alignment_of,
    middle,
)
from tokenweave.wave_table import load_table

if TYPE_CHECKING:
    from interlace.engine.ranks.runner import Runner
    from interlace.models.batch import ForwardBatch
    from tokenweave.kernels import Kernels
    from tokenweave.plan import Plan
    from tokenweave.wave_table import TableKey, WaveTable

MAX_DECISIONS = 4096
PEAK_S = 0.05  # how long each peak is measured where there is no table
TORCH_PEAKS = Peaks(20e9, 5e9)  # for the reference kernels, which are for checking and not for speed


class Weaver:
    """Splits batches, or leaves them whole.

    Thread safety: one caller at a time.
    """

    def __init__(
        self,
        mode: str,
        alignment: int,
        costs: CostModel | None = None,
        *,
        shared_core: bool,
        has_graphs: bool = False,
    ) -> None:
        """`mode`: never, always or auto, which is never without `costs`: of a model's layers. `shared_core`: see
        `simulate`. `has_graphs`: whether passes that decode are captured, so that the host issues no steps of them."""
        self.costs, self.alignment, self.shared_core = costs, alignment, shared_core
        self.has_graphs = has_graphs
        self.mode = "never" if mode == "auto" and costs is None else mode
        self._decisions: dict[tuple[int, ...], int | None] = {}

    @classmethod
    def of(cls, runner: Runner) -> Weaver:
        """The weaver of rank 0's `runner`. Reads the machine's wave table, if it can matter."""
        config, communicator, kernels = runner.config, runner.communicator, runner.kernels
        if runner.streams is not None:
            return cls._of_gpus(runner)
        alignment = alignment_of(row_tile(kernels), communicator.size)
        shared_core = lanes_share_cores(runner)
        if communicator.size == 1 or config.weave != "auto":
            mode = config.weave if communicator.size > 1 else "never"
            return cls(mode, alignment, shared_core=shared_core)
        if runner.lanes is None or (link_of(runner) is None and shared_core):
            return cls("never", alignment, shared_core=shared_core)  # there is nothing to hide
        return cls("auto", alignment, costs_of(runner), shared_core=shared_core)

    @classmethod
    def _of_gpus(cls, runner: Runner) -> Weaver:
        """Of ranks whose lanes are streams. Without times of their reductions nothing is woven, unless it always is."""
        config, size = runner.config, runner.communicator.size
        alignment = gpu_alignment_of(row_tile(runner.kernels), size)
        if size == 1 or config.weave != "auto":
            return cls(config.weave if size > 1 else "never", alignment, shared_core=False)
        has_graphs = runner.graphs is not None and runner.graphs.refusal is None
        return cls("auto", alignment, gpu_costs_of(runner), shared_core=False, has_graphs=has_graphs)

    def split(self, batch: ForwardBatch) -> int | None:
        """The row to split `batch` at; None: leave it whole. Costs microseconds but for the first batch of its kind."""
        if self.mode == "never" or batch.num_tokens < 2:
            return None
        if self.mode == "always":
            return middle(batch.num_tokens, self.alignment)
        load = batch.geometry
        kind = self._kind(load)
        if kind not in self._decisions:
            if len(self._decisions) >= MAX_DECISIONS:
                self._decisions.clear()
            self._decisions[kind] = self.choose(load).split
        split = self._decisions[kind]
        return split if split is None or split < batch.num_tokens else None

    def choose(self, load: BatchGeometry, guard: float = GUARD) -> Choice:
        """The predicted best split, priced anew."""
        num_tokens = load.num_tokens
        assert self.costs is not None
        sample = LayerSample.of(self.costs.layers)
        costs = replace(self.costs, layers=sample.kinds)
        hideable_s = costs.hideable_s(num_tokens, shared_core=self.shared_core)
        is_decoding = num_tokens == len(load.seq_lens)

        def plan_of(split: int | None) -> Plan:
            return plan_forward(len(sample.kinds), num_tokens, split)

        return choose_split(
            plan_of,
            lambda split: costs.cost_of(plan_of(split), load),
            candidates(num_tokens, self.alignment) if hideable_s > 0 else (),
            shared_core=self.shared_core,
            guard=guard,
            sample=sample,
            issue_s=0.0 if self.has_graphs and is_decoding else costs.table.host.issue_s,
        )

    def _kind(self, load: BatchGeometry) -> tuple[int, ...]:
        """Returns a batch's kind: token count, attention, and where that lies. Batches of a kind share a decision."""
        num_tokens = load.num_tokens
        starts, lengths = load.query_start, load.seq_lens.astype(np.int64)
        num_new = starts[1:] - starts[:-1]
        pairs = num_new * (2 * lengths - num_new + 1)  # twice the pairs of a query and a key that it sees
        total = int(pairs.sum())
        place = 8 * int(pairs @ starts[:-1]) // (total * num_tokens)
        width = self.alignment * max(1, num_tokens // (64 * self.alignment))
        return width, num_tokens // width, int(4 * math.log2(total)), place, len(load.logit_rows).bit_length()


def lanes_share_cores(runner: Runner) -> bool:
    """Whether the lanes of this host's ranks have fewer cores than threads that may be at work."""
    own = runner.ranks[runner.communicator.rank]
    ranks_here = sum(info.host == own.host for info in runner.ranks)
    return ranks_here * (runner.kernels.threads + 1) > resources.num_threads()


def costs_of(runner: Runner) -> CostModel:
    """Prices of this job's plans: from the machine's wave table if there is one, otherwise from what it could do."""
    size = runner.communicator.size
    key = table_key(runner.model_config, size, runner.kernels, runner.dtype, runner.weights_name)
    table = load_table(table_directory(), key) or default_table(key, runner.kernels)
    if runner.exchange is not None:
        table = replace(table, reduce=runner.exchange.reduce)
    return CostModel(table, link_of(runner), _layers_of(runner))


def gpu_costs_of(runner: Runner) -> CostModel | None:
    """Prices on GPUs: stages from the machine's wave table, or else from what the device could do; reductions as the
    group has timed them. None where it has not.

    Where the communicator takes no CTAs it is told, its reductions are taken to take the most. Without a table, that,
    and how long the host takes to issue a step, is assumed.
    """
    found, kernels = runner.gpu_prices, runner.kernels
    if found is None or found.reduce is None or found.reduce_part is None:
        return None
    table = found.table
    if table is None:
        assert found.peaks is not None
        key = table_key(
            runner.model_config, runner.communicator.size, kernels, runner.dtype, runner.weights_name
        )
        num_sms = torch.cuda.get_device_properties(kernels.device).multi_processor_count
        table = analytic_gpu_table(key, found.peaks, row_tile(kernels), num_sms)
    sharing = table.sharing
    if sharing is not None:
        if found.ctas is None:
            sharing = SmSharing.of(sharing.num_sms, sharing.beside)
        sharing = replace(sharing, reduce=found.reduce_part)
    return CostModel(replace(table, reduce=found.reduce, sharing=sharing), None, _layers_of(runner))


def _layers_of(runner: Runner) -> tuple[int, ...]:
    """The kind of each of the model's layers."""
    config, size = runner.model_config, runner.communicator.size
    return kinds_of_layers(config, Shard.all_of(config, size))


def link_of(runner: Runner) -> LinkSpeed | None:
    """The link that the ranks' transfers wait for, measured or modelled; None: they move through memory."""
    if runner.exchange is not None:
        return runner.exchange.link
    spec = runner.config.link_spec
    return None if spec is None else LinkSpeed(spec.bytes_per_s, spec.latency_s)


def default_table(key: TableKey, kernels: Kernels) -> WaveTable:
    """Prices from FLOPs and bytes, and from what this machine's cores and memory reach, which is measured now."""
    if not isinstance(kernels, NativeKernels):
        return analytic_table(key, TORCH_PEAKS)
    product = "bf16_gflops" if key.dtype == "bfloat16" else "fma_gflops"
    peaks = (native.measure_limit(limit, kernels.threads, PEAK_S) for limit in (product, "read_gbps"))
    return analytic_table(key, Peaks(*(1e9 * peak for peak in peaks)), row_tile(kernels))
