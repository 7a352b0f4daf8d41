"""The GPU by name and size, and the floors for the others: the rates of a copy, of a product, of launches."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.gpu.device import Device, check_close
from benchmarks.gpu.findings import Finding
from benchmarks.gpu.stage import StageJob
from emucxl.bench.harness import Samples, interleaved

COPY_BYTES = 4 << 30
PRODUCT = 8192  # rows and columns of the matrices of the floor
LAUNCHES = 200
QUERY_S = 20.0


def run(job: StageJob) -> None:
    device, is_dry_run = job.device, job.options.is_dry_run
    rounds = 1 if is_dry_run else 5 if job.options.is_quick else 15
    described = describe(device)
    job.told.keep(**described)
    job.told.show(*(Finding(what, str(described[what])) for what in ("device", "software", "size")))
    copied_bytes = 1 << 16 if is_dry_run else min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 4)
    copied = rate_of_copy(device, copied_bytes, rounds)
    size = 64 if is_dry_run else PRODUCT
    product = rate_of_product(device, size, rounds)
    job.told.keep(
        copy=copied.to_json("bytes/s, read and written"),
        product=product.to_json("FLOP/s"),
        dtype=str(device.dtype),
    )
    job.told.show(
        Finding("copy, bytes read and written", f"{scaled(copied, 1e-9).text()} GB/s"),
        Finding(f"product of {size}^3, {device.dtype}", f"{scaled(product, 1e-12).text()} TFLOP/s"),
    )
    launches = launch_times(device, 2 if is_dry_run else LAUNCHES, rounds)
    job.told.keep(launches_us={name: samples.to_json("us") for name, samples in launches.items()})
    for name, samples in launches.items():
        job.told.show(Finding(name, f"{samples.text(1)} us"))


def describe(device: Device) -> dict[str, Any]:
    """The device's name and size, and the software around it."""
    versions = f"torch {torch.__version__}, Triton {triton_version()}"
    if device.kind == "cpu":
        return {"device": device.name, "software": versions, "size": "no SMs"}
    about: Any = torch.cuda.get_device_properties()
    return {
        "device": device.name,
        "software": f"driver {driver_version()}, {versions}",
        "size": f"{about.multi_processor_count} SMs, {about.total_memory / 1e9:.0f} GB, "
        f"L2 {about.L2_cache_size / 1e6:.0f} MB",
        "num_sms": about.multi_processor_count,
        "capability": list(torch.cuda.get_device_capability()),
    }


def driver_version() -> str:
    """The driver's version by nvidia-smi, or why it is not known."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=QUERY_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"
    return done.stdout.split("\n", 1)[0].strip()


def triton_version() -> str:
    """Triton's version, or "none"."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "none"


def rate_of_copy(device: Device, size_bytes: int, rounds: int) -> Samples:
    """Bytes read and bytes written, together, for each second of a large copy."""
    source = torch.randint(-128, 127, (size_bytes,), dtype=torch.int8, device=device.kind)
    target = torch.zeros_like(source)
    copy = partial(target.copy_, source)
    copy()
    if not torch.equal(source, target):
        raise ArithmeticError("a copy is not what was copied")
    return inverse(interleaved({"copy": device.timed(copy)}, rounds)["copy"], 2e6 * size_bytes)


def rate_of_product(device: Device, size: int, rounds: int) -> Samples:
    """Operations for each second of a square product."""
    left, right = (device.random(size, size, seed=seed) for seed in (0, 1))
    out = torch.empty_like(left)
    product = partial(torch.mm, left, right, out=out)
    product()
    rows = min(size, 64)
    check_close("a product", out[:rows], left[:rows].double() @ right.double(), 1e-2)
    measure = device.timed(lambda: [product() for _ in range(3)], 3)
    return inverse(interleaved({"product": measure}, rounds)["product"], 2e6 * size**3)


def launch_times(device: Device, launches: int, rounds: int) -> dict[str, Samples]:
    """Microseconds for each launch of a kernel that does next to nothing."""
    one = torch.zeros(16, device=device.kind)
    kernels: dict[str, Callable[[], object]] = {"torch": partial(one.add_, 1)}
    if find_spec("triton"):
        from benchmarks.gpu.standins import stamp_kernel

        stamp = torch.zeros(1, dtype=torch.int64, device=device.kind)
        kernels["Triton"] = lambda: stamp_kernel[(1,)](stamp)
    measures = {}
    for name, kernel in kernels.items():
        kernel()
        measures[f"launch by {name}, on the host"] = device.issued(kernel, launches)
        measures[f"launch by {name}, in a graph"] = device.replayed(kernel, launches)
    return interleaved(measures, rounds)


def scaled(samples: Samples, by: float) -> Samples:
    return Samples(tuple(by * value for value in samples.values))


def inverse(samples: Samples, of: float) -> Samples:
    return Samples(tuple(of / value for value in samples.values))
