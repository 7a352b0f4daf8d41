"""The wave table that `interlace tune --device cuda` measures, of Llama-3-8B over two ranks that share the GPU.

Whether a batch is worth weaving is decided from such a table. Of ranks that share a GPU it says how the measuring goes
and what reductions take from products beside them; a table for use is of ranks that have a GPU each.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.gpu.findings import Finding
from benchmarks.gpu.llama import LLAMA_8B, TINY
from benchmarks.gpu.stage import StageJob
from interlace.engine.weaving.gpu_stages import CudaGpus, measure_gpus
from interlace.models.config import ModelConfig
from tokenweave.wave_table import WaveTable

SIZE = 2  # ranks
MAX_TOKENS, DRY_TOKENS = 2048, 4
BUDGET_S = 20.0


def run(job: StageJob) -> None:
    config: ModelConfig
    gpus: Any
    if job.options.is_dry_run:
        fakes = importlib.import_module("support.fake_gpus")  # the tests' own, with a made-up clock
        gpus, config, max_tokens, budget_s = fakes.FakeGpus(SIZE, num_sms=132), TINY, DRY_TOKENS, 0.0
    else:
        gpus, config, max_tokens, budget_s = CudaGpus(SIZE), LLAMA_8B, MAX_TOKENS, BUDGET_S
    config = replace(config, max_position=max(config.max_position, max_tokens))
    table = measure_gpus(config, gpus, job.device.dtype, max_tokens, budget_s)
    job.told.keep(wave_table=table.to_json())
    job.told.show(*findings(table, max_tokens))


def findings(table: WaveTable, num_tokens: int) -> Iterator[Finding]:
    """A layer of so many tokens alone, then with each number of CTAs: its reduction, and what it costs products."""
    alone_s = table.projections(num_tokens) + table.kinds[0].mlp(num_tokens)
    what = f"wave table, a layer of {num_tokens} tokens"
    yield Finding(f"{what}, products alone", f"{1e6 * alone_s:,.0f} us")
    for beside in () if table.sharing is None else table.sharing.beside:
        slower = (beside.projections(num_tokens) + beside.mlps[0](num_tokens)) / alone_s
        got = f"{1e6 * beside.reduce(num_tokens):,.1f} us, products beside it take {slower:.2f} times as long"
        yield Finding(f"{what}, a reduction by {beside.num_ctas} CTAs", got)
