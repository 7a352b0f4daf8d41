"""The servers of `interlace kv-sim`: how long they take to compute a prompt, by a round figure or by a wave table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interlace.cli import console
from interlace.errors import BlockTraceError

if TYPE_CHECKING:
    from interlace.cache.prefill import Prefill

PREFILL_RATE = 10_000.0
LLAMA_3_8B_BYTES = 131_072  # of keys and values of a token: 2 x 32 layers x 8 heads x 128 x 2 bytes
LEFT = 10 * " "  # under the first line of the header
PROMPTS = (512, 2048, 8192)  # whose times the header has


@dataclass(frozen=True)
class Servers:
    """The price of a prompt on one server, in words and for --json, and the keys and values of a token, in bytes."""

    prefill: Prefill
    kv_bytes_per_token: int
    text: str
    facts: dict[str, Any]


def round_servers(tokens_per_s: float) -> Servers:
    """Of a round figure, for Llama-3-8B. Raises ArgumentError for a rate out of its range."""
    from interlace.cache.prefill import SteadyPrefill

    prefill = SteadyPrefill(tokens_per_s)
    return Servers(
        prefill, LLAMA_3_8B_BYTES, f"of {tokens_per_s:,g} tokens/s", {"prefill_tokens_per_s": tokens_per_s}
    )


def tuned_servers(model: str, tp: int, dtype: str, quantize: str, device: str) -> Servers:
    """Of `tp` ranks of this machine each, by its wave table for `model`.

    Raises:
        EngineError: `interlace tune` has not measured it.
        ModelError: there is no such model.
    """
    from interlace.cache.prefill import TablePrefill
    from interlace.cli.plan_costs import tuned_table
    from interlace.engine.config import EngineConfig
    from interlace.engine.weaving.table_key import kinds_of_layers
    from interlace.models.shard import Shard
    from interlace.models.sources import load_model
    from tokenweave.cost import DTYPE_BYTES, CostModel

    source = load_model(model, quiet=not console.is_progress_shown()).weights
    table = tuned_table(source, tp, dtype, quantize, device, model).table
    config, key = source.config, table.key
    shards = Shard.all_of(config, tp)
    pass_tokens = EngineConfig.max_num_batched_tokens
    prefill = TablePrefill(
        CostModel(table, layers=kinds_of_layers(config, shards)), config.num_layers, pass_tokens
    )
    kv_heads = sum(len(shard.kv_heads) for shard in shards)
    kv_bytes = 2 * config.num_layers * kv_heads * config.head_dim * DTYPE_BYTES[key.dtype]
    times = ", ".join(f"{length:,} tokens in {prefill(length, 0):.3g} s" for length in PROMPTS)
    ranks = f"{tp} rank{'s' * (tp > 1)}"
    text = f"by this machine's wave table: {model}, {ranks}, {key.dtype}, {key.kernels}\n{LEFT}{times}"
    facts = {
        "prefill_tokens_per_s": None,
        "wave_table": {
            "model": model,
            "machine": key.machine,
            "kernels": key.kernels,
            "dtype": key.dtype,
            "tp": tp,
            "pass_tokens": pass_tokens,
            "prefill_s": {str(length): prefill(length, 0) for length in PROMPTS},
        },
    }
    return Servers(prefill, kv_bytes, text, facts)


def chosen_servers(
    prefill_rate: float | None, tuned: str | None, tp: int, dtype: str, quantize: str, device: str
) -> Servers:
    """Those of the options. Raises BlockTraceError where a rate and a model are given, and what the others raise."""
    if tuned is None:
        return round_servers(PREFILL_RATE if prefill_rate is None else prefill_rate)
    if prefill_rate is not None:
        raise BlockTraceError(
            f"got --prefill-rate {prefill_rate:g} and --tuned {tuned}; expected one of them: both say how long "
            "prompts take"
        )
    return tuned_servers(tuned, tp, dtype, quantize, device)
