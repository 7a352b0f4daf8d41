"""The physical limits of a device at the model's shapes: GEMM alone, and bytes from memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .protocol import Operation

READ_BYTES = 1 << 30  # far more than any cache holds
PRODUCT = 8192  # rows and columns of the matrices by which a GPU's arithmetic is measured
PRODUCTS = {"fma": torch.float32, "bf16": torch.bfloat16}  # by the names of a processor's loops
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Multiply = Callable[[Tensor], Tensor]


def bandwidth(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Bytes per second read as a stream, and copied (each byte copied counts once read and once written)."""
    torch.set_num_threads(threads)
    source = torch.ones(READ_BYTES // 8, dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    target.copy_(source)  # touches its pages
    sums = (source.sum, source.view(torch.float32).sum)
    if device != "cpu":
        for add in sums:  # loads its kernel
            add()
    read_s = min(_seconds(add, device) for add in sums)
    copy_s = _seconds(lambda: target.copy_(source), device)
    return {"read_bytes_per_s": READ_BYTES / read_s, "copy_bytes_per_s": 2 * READ_BYTES / copy_s}


def peak(threads: int, device: str = "cpu", seconds: float = 0.2) -> dict[str, Any]:
    """Operations per second of loops that do nothing else, by what they multiply; none without the native library.

    On a device other than the CPU those of a large square product in float32 ("fma") and in bfloat16 ("bf16").
    """
    if device != "cpu":
        return {name: _rate_of_product(dtype, device) for name, dtype in PRODUCTS.items()}
    try:
        from tokenweave import native

        loops = {name.removesuffix("_gflops"): name for name in native.LIMITS if name.endswith("_gflops")}
        return {key: native.measure_limit(name, threads, seconds) * 1e9 for key, name in loops.items()}
    except Exception as error:  # not built, or not for this processor
        print(f"native library: {error}")
        return {}


@torch.inference_mode()
def gemm(
    shapes: list[tuple[int, int, int]], dtype: str, num_tokens: int, threads: int, device: str = "cpu"
) -> dict[str, Any]:
    """Seconds for one multiplication by each weight of the model, per backend that can be had.

    shapes: (n, k, how many such weights the model has); all are kept apart, as in the model, so that none stays
    in a cache that it would not be in.
    """
    torch.set_num_threads(threads)
    native = _native_multiply(threads) if device == "cpu" else None
    backends = {"torch": _torch_multiply, "native": native}
    flops = sum(2 * num_tokens * n * k * count for n, k, count in shapes)
    results = {}
    for name, backend in backends.items():
        if backend is None:
            continue
        seconds = _time_all(backend, shapes, DTYPES[dtype], num_tokens, device)
        results[name] = {"seconds": seconds, "flops_per_s": flops / seconds}
    return {"flops": flops, "backends": results}


def _time_all(
    backend: Callable[[Tensor], Multiply],
    shapes: list[tuple[int, int, int]],
    dtype: torch.dtype,
    num_tokens: int,
    device: str,
) -> float:
    work = []
    for n, k, count in shapes:
        x = torch.randn(num_tokens, k, device=device).to(dtype)
        work += [(backend(torch.randn(n, k, device=device).to(dtype)), x) for _ in range(count)]
    work[0][0](work[0][1])

    def run() -> None:
        for multiply, x in work:
            multiply(x)

    return min(_seconds(run, device) for _ in range(2))


def _torch_multiply(weight: Tensor) -> Multiply:
    return lambda x: torch.nn.functional.linear(x, weight)


def _native_multiply(threads: int) -> Callable[[Tensor], Multiply] | None:
    try:
        from tokenweave.kernels import make_kernels

        kernels = make_kernels("native", threads)
    except Exception as error:  # not built, or not for this processor: torch alone is reported then
        print(f"native kernels: {error}")
        return None

    def backend(weight: Tensor) -> Multiply:
        packed = kernels.pack(weight)
        return lambda x: kernels.linear(x, packed)

    return backend


def _rate_of_product(dtype: torch.dtype, device: str) -> float:
    left, right = (torch.randn(PRODUCT, PRODUCT, device=device).to(dtype) for _ in range(2))
    out = left @ right
    return 2 * PRODUCT**3 / min(_seconds(lambda: torch.mm(left, right, out=out), device) for _ in range(3))


def _seconds(call: Callable[[], object], device: str) -> float:
    """The time of a call; where it only queues work on a device, until that is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def operations() -> dict[str, Operation]:
    """The requests that the worker answers, by name."""
    return {"bandwidth": bandwidth, "gemm": gemm, "peak": peak}
