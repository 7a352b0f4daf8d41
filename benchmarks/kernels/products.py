"""`make bench kernels`: matrix products and attention beside torch's and the machine's limits, interleaved.

Every case is checked against torch first. Rates are of the median call; fractions are of limits measured here, on as
many threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels.turns import time_in_turns
from emucxl.bench.harness import Progress, Report, Samples, part_of
from tokenweave import native
from tokenweave.kernels import (
    FORMATS,
    AttentionBatch,
    AttentionLayer,
    HeadLayout,
    Kernels,
    QuantFormat,
    StoredWeight,
    make_kernels,
)
from tokenweave.kernels.stored import dequantise

Call = Callable[[], Tensor]
SMOLLM2_HEADS = HeadLayout(9, (0, 0, 0, 1, 1, 1, 2, 2, 2), 64)
LINEAR_SHAPES = [(3072, 576), (576, 1536), (49152, 576)]  # (n, k): gate_up, down and lm_head of SmolLM2-135M
NUM_ROWS = [1, 8, 32, 512, 2048]
STORED_SHAPES = [(3072, 576), (8192, 2048)]  # of SmolLM2-135M, and of a Llama of a billion parameters
STORED_ROWS = [1, 8, 512]
LARGEST_FLOP = 2 * 2048 * 3072 * 576  # larger products say nothing new
ATTENTION_CASES = [(512, 512), (2048, 2048), (2048, 1)]  # (keys, new queries)
PEAK = {torch.bfloat16: "bf16_gflops", torch.float32: "fma_gflops"}


QUICK_S = 0.02
MOST_ROUNDS = 10_000


@dataclass(frozen=True)
class KernelCase:
    """One shape: our kernel and torch's, and the operations and bytes that it cannot do without."""

    name: str
    peak: str  # the limit that bounds its operations, as native.LIMITS names it
    ours: Call
    with_torch: Call
    flop: int
    size_bytes: int
    check: Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class KernelFigures:
    """The figures of one case: times of a call, rates of the median one, and their shares of the limits."""

    case: str
    ours_us: float
    torch_us: float
    gflops: float
    fraction_of_peak: float
    gbps: float
    fraction_of_read: float
    torch_over_ours: Samples

    def row(self) -> tuple[str, ...]:
        return (
            self.case,
            *(f"{self.ours_us:.1f}", f"{self.torch_us:.1f}", self.torch_over_ours.text(2)),
            *(f"{self.gflops:.1f}", f"{self.fraction_of_peak:.0%}"),
            *(f"{self.gbps:.1f}", f"{self.fraction_of_read:.0%}"),
        )

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "torch_over_ours": self.torch_over_ours.to_json("ratio")}


def check(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.float(), expected.float(), rtol=3e-2, atol=3e-2)


def check_stored(got: Tensor, expected: Tensor) -> None:
    """Rows of x are rounded to int8, so each output is off by a part of all outputs' deviation."""
    off = float((got - expected).std() / expected.std())
    assert off < 2e-2, f"outputs are off by {off:.1%} of their deviation; expected 2 % at most"


def linear_case(kernels: Kernels, m: int, n: int, k: int, dtype: torch.dtype) -> KernelCase:
    x, weight = torch.randn(m, k).to(dtype), (torch.randn(n, k) * k**-0.5).to(dtype)
    packed = kernels.pack(weight)
    return KernelCase(
        f"linear {_name(dtype)} m={m} n={n} k={k}",
        PEAK[dtype],
        lambda: kernels.linear(x, packed),
        lambda: torch.nn.functional.linear(x, weight),
        2 * m * n * k,
        weight.nbytes,
        check,
    )


def stored_case(kernels: Kernels, m: int, n: int, k: int, form: QuantFormat) -> KernelCase:
    """torch multiplies the same values in float32. The codes are any bytes, the scales any small numbers."""
    x, blocks = torch.randn(m, k), torch.randint(256, (n, form.row_bytes(k)), dtype=torch.uint8)
    blocks[:, 1::2] &= 0x2F  # the upper bytes of float16 numbers, wherever they lie: 0 to 0.12
    stored = StoredWeight.whole(form, k, blocks)
    packed, weight = kernels.pack_stored(stored, dtype=torch.float32), dequantise(stored)
    return KernelCase(
        f"linear {form.name} m={m} n={n} k={k}",
        PEAK[torch.float32],
        lambda: kernels.linear(x, packed),
        lambda: torch.nn.functional.linear(x, weight),
        2 * m * n * k,
        blocks.nbytes,
        check_stored,
    )


def attention_case(kernels: Kernels, num_keys: int, num_queries: int, dtype: torch.dtype) -> KernelCase:
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
    name = f"attention {_name(dtype)} queries={num_queries} keys={num_keys}"
    return KernelCase(
        name, PEAK[dtype], ours, with_torch, 4 * d * heads.num_heads * seen, cache.nbytes, check
    )


def measure(
    case: KernelCase, limits: dict[str, float], seconds: float, progress: Progress | None
) -> KernelFigures:
    """Checks a case, then times both sides in turns for about `seconds`."""
    case.check(case.ours(), case.with_torch())
    ours, with_torch = time_in_turns(case.ours, case.with_torch, seconds, MOST_ROUNDS, progress)
    ours_s, torch_s = ours.median, with_torch.median
    gflops, gbps = case.flop / ours_s * 1e-9, case.size_bytes / ours_s * 1e-9
    return KernelFigures(
        case.name,
        ours_s * 1e6,
        torch_s * 1e6,
        gflops,
        gflops / limits[case.peak],
        gbps,
        gbps / limits["read_gbps"],
        with_torch.over(ours),
    )


def cases(kernels: Kernels, quick: bool) -> Iterator[Callable[[], KernelCase]]:
    """Every case, as a function that makes its tensors: together they would not fit into memory."""
    for dtype in PEAK:
        for n, k in LINEAR_SHAPES[: 1 if quick else None]:
            for m in NUM_ROWS[: 2 if quick else None]:
                if 2 * m * n * k <= LARGEST_FLOP:
                    yield partial(linear_case, kernels, m, n, k, dtype)
        for num_keys, num_queries in ATTENTION_CASES[: 1 if quick else None]:
            yield partial(attention_case, kernels, num_keys, num_queries, dtype)
    for form in FORMATS.values():
        for n, k in STORED_SHAPES:
            for m in STORED_ROWS[: 1 if quick else None]:
                if k % form.block_values == 0:
                    yield partial(stored_case, kernels, m, n, k, form)


def run(threads: int, seconds: float, quick: bool = False, progress: Progress | None = None) -> Report:
    """Every case, `seconds` for each.

    Raises: AssertionError when a kernel gives something other than torch.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    kernels = make_kernels("native", threads)
    seconds = min(seconds, QUICK_S) if quick else seconds
    limits = {name: native.measure_limit(name, threads, seconds) for name in native.LIMITS}
    makers = list(cases(kernels, quick))
    found = [
        measure(make(), limits, seconds, part_of(progress, place, len(makers)))
        for place, make in enumerate(makers)
    ]
    return Report(
        name="kernels",
        title=f"Native kernels and torch, {threads} threads, {native.selected_isa()} (measured)",
        columns=("case", "ours us", "torch us", "torch / ours", "GFLOP/s", "of peak", "GB/s", "of read"),
        rows=tuple(figures.row() for figures in found),
        notes=(
            "medians of interleaved calls; ratios round by round (quartiles)",
            "weights in blocks: beside torch on their values in float32; of peak: of float32's",
            "limits: " + ", ".join(f"{name} {value:,.1f}" for name, value in limits.items()),
        ),
        results={
            "threads": threads,
            "features": native.instruction_sets(),
            "limits": limits,
            "cases": [figures.to_json() for figures in found],
        },
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
