"""The prices of steps for `interlace plan show` and `kv-sim`: round figures, or this machine's wave table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from emucxl import resources
from interlace.cli.plan_work import sequence
from interlace.engine.weaving.table_key import key_of_shards, kinds_of_layers
from interlace.errors import EngineError
from tokenweave.cost import (
    CostModel,
    LinkSpeed,
    Moved,
    Peaks,
    analytic_gpu_table,
    analytic_table,
)
from tokenweave.link import LinkSpec
from tokenweave.ops import Op
from tokenweave.simulate import Timeline, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlace.cache.kv_tier import KvTierSpec
    from interlace.models.config import ModelConfig
    from interlace.models.shard import Shard
    from interlace.models.weights import WeightSource
    from tokenweave.plan import Plan
    from tokenweave.wave_table import WaveTable

ROUND = Peaks(flops_per_s=100e9, bytes_per_s=10e9)
ROUND_TILE = 12  # rows of a tile of matrix products
ROUND_GPU = Peaks(flops_per_s=500e12, bytes_per_s=3e12)
ROUND_GPU_TILE = 128
ROUND_SMS = 100


@dataclass(frozen=True)
class PlanCosts:
    """Prices, and what they are in words."""

    model: CostModel
    shared_core: bool
    text: str

    moved: Moved = field(default_factory=dict)  # of a layer, on the memory lane

    def with_moves(self, moved: Moved) -> PlanCosts:
        """With these prices of steps on the memory lane too."""
        return replace(self, moved={**self.moved, **moved})

    def with_weights_tier(self, tier: KvTierSpec, layer_bytes: float) -> PlanCosts:
        """With layers of so many bytes fetched from `tier`: as its timing says, or as fast as a core copies."""
        from interlace.engine.weaving.fetch_planner import COPY_S_PER_BYTE, TierSpeed

        speed = TierSpeed(COPY_S_PER_BYTE) if tier.timing is None else TierSpeed.modelled(tier.timing)
        moved = {Op.FETCH_WEIGHTS: speed.phases(layer_bytes)}
        assumed = (
            "" if tier.timing else f", assumed as fast as a core copies, {1e-9 / COPY_S_PER_BYTE:g} GB/s"
        )
        return replace(self.with_moves(moved), text=f"{self.text}, layers from {tier.text}{assumed}")

    def timeline(self, plan: Plan, num_before: int = 0) -> Timeline:
        """`plan` over one sequence, behind `num_before` tokens of it whose keys are there, simulated."""
        load = sequence(plan.num_tokens, num_before)
        issue_s, cost = self.model.table.host.issue_s, self.model.cost_of(plan, load, self.moved)
        return simulate(plan, cost, shared_core=self.shared_core, issue_s=issue_s)


def round_costs(
    config: ModelConfig,
    shards: Sequence[Shard],
    dtype: str,
    link: str | None,
    weight_bytes: float | None = None,
    device: str = "cpu",
) -> PlanCosts:
    """The same on every machine: a rank of round figures, whose lanes have a core each, or are streams of a GPU.

    `weight_bytes` are those of a value of a weight; None: those of the dtype.
    """
    key = key_of_shards(
        config,
        shards,
        machine="round figures",
        kernels="any",
        library="",
        dtype=dtype,
        threads=1,
    )
    if device == "cuda":
        table = analytic_gpu_table(key, ROUND_GPU, ROUND_GPU_TILE, ROUND_SMS, weight_bytes)
        assert table.sharing is not None
        text = (
            f"GPUs of {ROUND_GPU.flops_per_s / 1e12:g} TFLOP/s, {ROUND_GPU.bytes_per_s / 1e12:g} TB/s and {ROUND_SMS} "
            f"SMs, of which a reduction takes {table.sharing.beside[0].num_ctas}"
        )
    else:
        table = analytic_table(key, ROUND, ROUND_TILE, weight_bytes)
        speeds = f"{ROUND.flops_per_s / 1e9:g} GFLOP/s and {ROUND.bytes_per_s / 1e9:g} GB/s"
        text = f"ranks of {speeds}, a core for each lane"
    costs = CostModel(table, _link(link, len(shards)), kinds_of_layers(config, shards))
    return PlanCosts(costs, False, f"{text}, {_said(link)}")


@dataclass(frozen=True)
class TunedTable:
    """A wave table that `interlace tune` left, and the ranks that it is of."""

    table: WaveTable
    device: str  # cpu or cuda
    threads: int  # of each rank

    @property
    def shares_core(self) -> bool:
        """Whether the lanes of a rank have one core between them."""
        num_ranks = len(self.table.key.ranks)
        return self.device == "cpu" and num_ranks * (self.threads + 1) > resources.num_threads()


def tuned_table(
    source: WeightSource, tp: int, dtype: str, quantize: str, device: str = "auto", model: str = "MODEL"
) -> TunedTable:
    """This machine's, as `interlace tune` measured it on `device`; auto: where the engine would compute.

    A dtype or a way to quantize that is `auto` is what `interlace tune` makes of it. `model`: its name in the error.

    Raises:
        EngineError: it has not been measured.
    """
    from interlace.engine.config import EngineConfig
    from interlace.engine.dtypes import choice as dtypes
    from interlace.engine.dtypes.products import Products
    from interlace.engine.ranks.connect import kernels_for
    from interlace.engine.ranks.device import resolve_device
    from interlace.engine.weaving.this_machine import table_directory, table_key
    from interlace.models.footprint import resolve_quantize, weights_name
    from interlace.models.shard import Shard
    from tokenweave.wave_table import load_table

    config = source.config
    asked = EngineConfig("model", tp=tp, dtype=dtype, quantize=quantize, device=device)
    asked = replace(asked, device=resolve_device(asked))
    kernels = kernels_for(asked, tp)
    quantize = resolve_quantize(quantize, dtype, source)
    products = Products.of(config, Shard.of(config, 0, tp), dtypes.blocks_of(quantize, source))
    found = dtypes.resolve(dtype, kernels, products)
    key = table_key(config, tp, kernels, found, weights_name(source, quantize))
    table = load_table(table_directory(), key)
    if table is None:
        option = ("" if quantize == "none" else f" --quantize {quantize}") + (
            " --device cuda" if asked.device == "cuda" else ""
        )
        raise EngineError(
            f"no wave table of this model on {tp} ranks with --dtype {key.dtype} --quantize {quantize} has been "
            f"measured on this machine (one for another --dtype or --quantize does not count): run "
            f"`interlace tune {model} --tp {tp} --dtype {key.dtype}{option}`, or leave out --tuned"
        )
    return TunedTable(table, asked.device, kernels.threads)


def tuned_costs(
    source: WeightSource, tp: int, dtype: str, quantize: str, link: str | None, device: str = "auto"
) -> PlanCosts:
    """The prices of `tuned_table`. Raises what that does."""
    from interlace.models.shard import Shard

    tuned = tuned_table(source, tp, dtype, quantize, device)
    if tuned.device == "cuda":
        lanes = f"lanes are streams of {tuned.table.key.machine}"
    else:
        lanes = "one core for both lanes" if tuned.shares_core else "a core for each lane"
    layers = kinds_of_layers(source.config, Shard.all_of(source.config, tp))
    costs = CostModel(tuned.table, _link(link, tp), layers)
    return PlanCosts(costs, tuned.shares_core, f"this machine's wave table, {lanes}, {_said(link)}")


def _link(text: str | None, tp: int) -> LinkSpeed | None:
    if text is None or tp == 1:
        return None
    spec = LinkSpec.parse(text)
    return LinkSpeed(spec.bytes_per_s, spec.latency_s)


def _said(link: str | None) -> str:
    return "no link: transfers move through memory" if link is None else f"link {link}"
