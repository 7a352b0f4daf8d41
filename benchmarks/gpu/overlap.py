"""Products beside communication: whether a reduction starts beside a GEMM, and what a GEMM loses to SMs that are taken.

1. A reduction is queued behind a running GEMM that fills the device, with and without SMs that the GEMM is told to
   leave free (torch's carve-out, which one of the two BLAS libraries may heed and the other not).
2. The products of Llama-3-70B over eight ranks, beside CTAs that do nothing but stay: what they lose to the SMs alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.device import Call, Device, check_close
from benchmarks.gpu.findings import Finding, StageFile, Verdict
from benchmarks.gpu.fused import PEERS, check, check_all_came
from benchmarks.gpu.occupier import Occupier
from benchmarks.gpu.stage import StageJob
from emucxl.bench.harness import Samples, interleaved

# (n, k) of Llama-3-70B's products, as one of eight ranks computes them.
PRODUCTS = {"qkv": (1280, 8192), "o": (8192, 1024), "gate/up": (7168, 8192), "down": (8192, 3584)}
COLD_BYTES = 128 << 20  # weights in turn, so many that none is in the L2 cache when it comes
BLAS = ("cublas", "cublaslt")
REDUCTIONS = 8
GEMMS = 4


@dataclass(frozen=True)
class OverlapShapes:
    """The shapes that are measured, and how often."""

    tokens: tuple[int, ...]
    num_ctas: tuple[int, ...]
    kept_free: tuple[int, ...]  # SMs; beside none
    rounds: int
    calls: int
    by: int = 1  # every product is made so many times smaller in each direction


FULL = OverlapShapes((512, 1024, 2048, 4096, 8192), (2, 4, 8, 16), (8, 16, 24), rounds=7, calls=8)
QUICK = OverlapShapes((512, 4096), (4, 16), (16,), rounds=3, calls=4)
DRY = OverlapShapes((2,), (2,), (8,), rounds=1, calls=1, by=128)


def run(job: StageJob) -> None:
    shapes = DRY if job.options.is_dry_run else QUICK if job.options.is_quick else FULL
    reductions_beside_products(job.device, shapes, job.told)
    products_beside_others(job.device, shapes, job.told)


def reductions_beside_products(device: Device, shapes: OverlapShapes, told: StageFile) -> None:
    """Part 1."""
    if device.kind != "cuda":
        told.show(Finding("a reduction beside a GEMM", "needs a GPU's streams", "", Verdict.NOT_RUN))
        return
    num_tokens, hidden_size = 2048, 8192
    ranks = device.ranks(1, num_tokens, hidden_size, max(shapes.num_ctas))
    check(device, ranks, ranks.by_peers, num_tokens, PEERS)
    left, right = device.random(4096, 8192, seed=0), device.random(8192, 7168, seed=1, scale=0.01)
    out = torch.empty(4096, 7168, device=device.kind, dtype=device.dtype)
    gemm: Call = partial(torch.mm, left, right, out=out)
    reduction: Call = partial(ranks.by_peers, 0, num_tokens)
    found: dict[str, Any] = {}
    for library in BLAS:
        for kept_free in (0, *shapes.kept_free):
            with products_on(library, kept_free):
                gemm()
                check_close("a product", out[:64], left[:64].double() @ right.double(), 1e-2)
                together = Together(gemm, reduction)
                samples = interleaved(
                    {
                        "products": device.timed(together.products),
                        "reductions": device.timed(together.reductions),
                        "both": device.timed(together.both),
                        "first reduction after": together.first_reduction,
                    },
                    shapes.rounds,
                )
            check_all_came(ranks)
            name = f"{library}, {kept_free} SMs kept free" if kept_free else library
            found[name] = {what: each.to_json("us") for what, each in samples.items()}
            told.keep(reductions_beside_products=found)
            told.show(Finding(f"reductions beside products, {name}", overlap_text(samples)))


def overlap_text(samples: dict[str, Samples]) -> str:
    """How much of the shorter of the two was hidden, and when the first reduction was done."""
    products, reductions, both, first = (
        samples[name].median for name in ("products", "reductions", "both", "first reduction after")
    )
    hidden = (products + reductions - both) / min(products, reductions)
    return (
        f"{hidden:.0%} hidden: {products:,.0f} and {reductions:,.0f}, together {both:,.0f} us; "
        f"first reduction after {first:,.0f} us of a product of {products / GEMMS:,.0f}"
    )


class Together:
    """Products on the current stream, and reductions on another, queued once the first product is."""

    def __init__(self, product: Call, reduction: Call) -> None:
        self._product, self._reduction = product, reduction
        cuda: Any = torch.cuda  # streams and events are untyped in torch
        self._side = cuda.Stream(priority=-1)
        self._fork, self._first = (cuda.Event(enable_timing=True) for _ in range(2))

    def products(self) -> None:
        for _ in range(GEMMS):
            self._product()

    def reductions(self) -> None:
        for _ in range(REDUCTIONS):
            self._reduction()

    def both(self) -> None:
        """The reductions may begin when the first product does; it has been queued before them."""
        self._fork.record()
        self._product()
        self._side.wait_event(self._fork)
        with torch.cuda.stream(self._side):
            self._reduction()
            self._first.record()
            for _ in range(REDUCTIONS - 1):
                self._reduction()
        for _ in range(GEMMS - 1):
            self._product()
        torch.cuda.current_stream().wait_stream(self._side)

    def first_reduction(self) -> float:
        """Microseconds from the beginning of the first product to the end of the first reduction."""
        self.both()
        torch.cuda.synchronize()
        return 1e3 * float(self._fork.elapsed_time(self._first))


@contextmanager
def products_on(library: str, kept_free: int) -> Iterator[None]:
    """Products are those of `library`, which is told to leave so many SMs free."""
    core: Any = torch._C
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(library)
    core._set_sm_carveout_experimental(kept_free or None)
    try:
        yield
    finally:
        core._set_sm_carveout_experimental(None)
        torch.backends.cuda.preferred_blas_library(before)


def products_beside_others(device: Device, shapes: OverlapShapes, told: StageFile) -> None:
    """Part 2: what a wave table of a GPU needs beside the times of products alone."""
    times: dict[str, dict[int, dict[int, Samples]]] = {}
    for name, (n, k) in PRODUCTS.items():
        times[name] = {}
        for num_tokens in shapes.tokens:
            products = products_of(device, num_tokens, n // shapes.by, k // shapes.by, shapes.calls)
            beside = {
                str(ctas): Occupier(device, ctas).beside(products, shapes.calls)
                for ctas in (0, *shapes.num_ctas)
            }
            found = interleaved(beside, shapes.rounds)
            times[name][num_tokens] = {int(ctas): samples for ctas, samples in found.items()}
        told.keep(products_beside_ctas=to_json(times))
    for ctas in shapes.num_ctas:
        told.show(slow_down(times, ctas))


def products_of(device: Device, num_tokens: int, n: int, k: int, calls: int) -> Call:
    """A graph of `calls` products of (num_tokens, k) and (n, k) transposed, checked, with other weights each time."""
    copies = max(2, min(calls, -(-COLD_BYTES // (n * k * device.dtype.itemsize))))
    weights = [device.random(n, k, seed=seed, scale=k**-0.5) for seed in range(copies)]
    rows = device.random(num_tokens, k, seed=99)
    out = torch.empty(num_tokens, n, device=device.kind, dtype=device.dtype)
    torch.mm(rows, weights[0].t(), out=out)
    checked = min(num_tokens, 16)
    check_close("a product", out[:checked], rows[:checked].double() @ weights[0].t().double(), 1e-2)

    def products() -> None:
        for number in range(calls):
            torch.mm(rows, weights[number % copies].t(), out=out)

    return device.captured(products)


def slow_down(times: dict[str, dict[int, dict[int, Samples]]], ctas: int) -> Finding:
    """The row of one number of CTAs: over all shapes, and the shape that loses most."""
    ratios = {
        f"{name} of {tokens} tokens": found[ctas].over(found[0]).median
        for name, by_tokens in times.items()
        for tokens, found in by_tokens.items()
    }
    worst = max(ratios, key=lambda name: ratios[name])
    got = f"{median(ratios.values()):.2f} times as long; most {ratios[worst]:.2f} ({worst})"
    return Finding(f"Llama-3-70B's products on one of 8 ranks beside {ctas} CTAs", got)


def to_json(times: dict[str, dict[int, dict[int, Samples]]]) -> dict[str, Any]:
    """By product, tokens and CTAs beside it."""
    return {
        name: {
            tokens: {ctas: samples.to_json("us") for ctas, samples in found.items()}
            for tokens, found in by_tokens.items()
        }
        for name, by_tokens in times.items()
    }
