"""Kernels against the machine's limits and against torch, interleaved in one process.

Every case is checked against torch first. Rates are of the median call; fractions are of limits measured here, on as
many threads. Run: python benchmarks/kernels.py [--threads 2] [--seconds 0.5] [--json results.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tokenweave import native
from tokenweave.kernels import AttentionBatch, AttentionLayer, HeadLayout, Kernels, make_kernels

Call = Callable[[], Tensor]
SMOLLM2_HEADS = HeadLayout(9, (0, 0, 0, 1, 1, 1, 2, 2, 2), 64)
LINEAR_SHAPES = [(3072, 576), (576, 1536), (49152, 576)]  # (n, k): gate_up, down and lm_head of SmolLM2-135M
NUM_ROWS = [1, 8, 32, 512, 2048]
LARGEST_FLOP = 2 * 2048 * 3072 * 576  # larger products say nothing new
ATTENTION_CASES = [(512, 512), (2048, 2048), (2048, 1)]  # (keys, new queries)
PEAK = {torch.bfloat16: "bf16_gflops", torch.float32: "fma_gflops"}


@dataclass(frozen=True)
class Row:
    case: str
    ours_us: float
    torch_us: float
    gflops: float
    fraction_of_peak: float
    gbps: float
    fraction_of_read: float


def interleaved_medians(calls: list[Call], seconds: float) -> list[float]:
    """Median seconds of each call, the calls taking turns for `seconds` in all."""
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for taken, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def check(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.float(), expected.float(), rtol=3e-2, atol=3e-2)


def linear_case(kernels: Kernels, m: int, n: int, k: int, dtype: torch.dtype) -> tuple[list[Call], int, int]:
    x, weight = torch.randn(m, k).to(dtype), (torch.randn(n, k) * k**-0.5).to(dtype)
    packed = kernels.pack(weight)
    calls: list[Call] = [lambda: kernels.linear(x, packed), lambda: torch.nn.functional.linear(x, weight)]
    return calls, 2 * m * n * k, weight.nbytes


def attention_case(
    kernels: Kernels, num_keys: int, num_queries: int, dtype: torch.dtype
) -> tuple[list[Call], int, int]:
    """torch is handed K and V already gathered and repeated for each query head."""
    heads, d = SMOLLM2_HEADS, SMOLLM2_HEADS.head_dim
    cache = kernels.new_kv_cache(1, num_keys // 16, heads, dtype)[0]
    positions = torch.arange(num_keys, dtype=torch.int32)
    qkv = torch.randn(num_keys, (heads.num_heads + 2 * heads.num_kv_heads) * d).to(dtype)
    unrotated = torch.cat([torch.ones(num_keys, d // 2), torch.zeros(num_keys, d // 2)], dim=1)
    table = torch.arange(num_keys // 16, dtype=torch.int32).unsqueeze(0)
    layer = AttentionLayer(heads, d**-0.5)

    def last(count: int) -> AttentionBatch:
        """The last `count` of the tokens, as new ones."""
        start, length = (torch.tensor(v, dtype=torch.int32) for v in ([0, count], [num_keys]))
        return AttentionBatch(unrotated, positions[-count:], positions[-count:], table, start, length)

    q = kernels.rope_and_store(qkv, cache, last(num_keys), layer)[-num_queries:].contiguous()
    batch = last(num_queries)
    parts = qkv.view(num_keys, -1, d).transpose(0, 1)
    keys, values = parts[heads.num_heads :].chunk(2)
    group = heads.num_heads // heads.num_kv_heads
    keys, values = (part.repeat_interleave(group, 0).unsqueeze(0) for part in (keys, values))
    queries = parts[: heads.num_heads, -num_queries:].contiguous().unsqueeze(0)

    def with_torch() -> Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=num_queries > 1
        )
        return out[0].transpose(0, 1).flatten(1)

    def ours() -> Tensor:
        return kernels.paged_attention(q, cache, batch, layer)

    seen = num_queries * (num_keys - num_queries) + num_queries * (num_queries + 1) // 2
    return [ours, with_torch], 4 * d * heads.num_heads * seen, cache.nbytes


def measure(
    case: str, work: tuple[list[Call], int, int], limits: dict[str, float], peak: str, seconds: float
) -> Row:
    calls, flop, size_bytes = work
    check(calls[0](), calls[1]())
    ours, with_torch = interleaved_medians(calls, seconds)
    gflops, gbps = flop / ours * 1e-9, size_bytes / ours * 1e-9
    return Row(
        case,
        ours * 1e6,
        with_torch * 1e6,
        gflops,
        gflops / limits[peak],
        gbps,
        gbps / limits["read_gbps"],
    )


def run(kernels: Kernels, limits: dict[str, float], seconds: float) -> list[Row]:
    rows = []
    for dtype, peak in PEAK.items():
        label = str(dtype).removeprefix("torch.")
        for n, k in LINEAR_SHAPES:
            for m in NUM_ROWS:
                if 2 * m * n * k <= LARGEST_FLOP:
                    work = linear_case(kernels, m, n, k, dtype)
                    rows.append(measure(f"linear {label} m={m} n={n} k={k}", work, limits, peak, seconds))
        for num_keys, num_queries in ATTENTION_CASES:
            work = attention_case(kernels, num_keys, num_queries, dtype)
            case = f"attention {label} queries={num_queries} keys={num_keys}"
            rows.append(measure(case, work, limits, peak, seconds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each case")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    kernels = make_kernels("native", options.threads)
    limits = {name: native.measure_limit(name, options.threads, options.seconds) for name in native.LIMITS}
    print({name: round(value, 1) for name, value in limits.items()}, native.features()["isa"])
    rows = run(kernels, limits, options.seconds)
    print(f"{'case':44}{'ours us':>10}{'torch us':>10}{'GFLOP/s':>9}{'of peak':>8}{'GB/s':>7}{'of read':>8}")
    for row in rows:
        print(
            f"{row.case:44}{row.ours_us:10.1f}{row.torch_us:10.1f}{row.gflops:9.1f}{row.fraction_of_peak:8.0%}"
            f"{row.gbps:7.1f}{row.fraction_of_read:8.0%}"
        )
    if options.json:
        machine = {"processor": platform.processor(), "threads": options.threads, **native.features()}
        result = {"machine": machine, "limits": limits, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
