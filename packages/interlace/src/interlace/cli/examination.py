"""The findings of `interlace doctor`: sections of facts, each a name and a text, and problems that stop Interlace."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emucxl import resources
from interlace.cli.console import cpu_quota, megabytes, memory_limit

if TYPE_CHECKING:
    from tokenweave.kernels import Kernels

PACKAGES = ("interlace", "torch", "triton", "numpy", "tokenizers", "safetensors", "gguf", "huggingface_hub")
UNITS = {"fma_gflops": "GFLOP/s float32", "bf16_gflops": "GFLOP/s bfloat16", "read_gbps": "GB/s read"}
MEASURE_S = 0.2  # per limit

Facts = dict[str, Any]


def examine(measure: bool = False) -> dict[str, Any]:
    """Returns everything that `doctor` reports. With `measure`, the machine's limits are measured too."""
    problems: list[str] = []
    report: dict[str, Any] = {"machine": _machine(), "software": _software()}
    if platform.system() != "Linux":
        problems.append(f"Interlace runs on Linux; got {platform.system()}")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        problems.append(f"torch cannot be imported: {error}; reinstall the package")
    else:
        from interlace.cli.cuda_examination import examine_cuda

        report["kernels"] = _kernels()
        report["cuda"] = examine_cuda()
        report["communicators"] = _communicators()
    report["models"] = _models()
    if measure and not problems:
        report["limits"] = _limits()
    return report | {"problems": problems}


def _machine() -> Facts:
    granted = resources.read()
    return {
        "processor": _first_value("/proc/cpuinfo", "model name")
        or platform.processor()
        or platform.machine(),
        "cores": f"{os.cpu_count()}, of which this process may use {granted.num_cores}",
        "memory": f"{_size(granted.memory_bytes)}, of which {_size(granted.available_bytes)} available",
        "cpu quota": cpu_quota(granted.cpu_quota_cores, granted.cpu_group, granted.num_threads),
        "memory limit": memory_limit(granted.memory_limit_bytes, granted.memory_group),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _software() -> Facts:
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _kernels() -> Facts:
    """Returns the kernels and dtypes that work here, and the ones that "auto" takes."""
    from interlace.engine.dtypes.choice import DTYPES
    from tokenweave import native
    from tokenweave.kernels import make_kernels

    kernels = make_kernels("auto", resources.num_threads())
    reason = native.unavailable_reason()
    found = {"native": f"unavailable: {reason}"} if reason else native.features()
    dtypes = [name for name in DTYPES if name != "float16"]  # which the engine takes on GPUs alone
    return {**found, "auto": kernels.name, "dtypes": dtypes, "auto dtype": _auto_dtype(kernels)}


def _auto_dtype(kernels: Kernels) -> str:
    """The dtype that `auto` takes and why. Where that depends on the model: for SmolLM2 with dense weights."""
    from interlace.engine.dtypes import choice
    from interlace.engine.dtypes.products import EXAMPLE
    from tokenweave.kernels import NativeKernels

    if not isinstance(kernels, NativeKernels):
        return f"float32, as always on {kernels.name} kernels"
    if not choice.multiplies_bfloat16(kernels):
        return f"float32, since {kernels.isa} has no products of bfloat16"
    found = choice.compared(kernels, EXAMPLE)
    return f"{found.faster} for SmolLM2 on {kernels.threads} threads: {found.text}"


def _communicators() -> Facts:
    from tokenweave.communicators import availability

    return {
        name: f"unavailable: {reason}" if reason else "available" for name, reason in availability().items()
    }


def _models() -> Facts:
    from huggingface_hub.constants import HF_HUB_CACHE

    from interlace.environment import cache_directory

    own, hub = cache_directory() / "models", Path(HF_HUB_CACHE)
    return {
        "cache": str(own),
        "fetched": [f"{found.name} ({megabytes(_size_bytes(found))})" for found in _folders(own, "*")],
        "hub cache": str(hub),
        "from the hub": [
            found.name.split("--", 1)[1].replace("--", "/") for found in _folders(hub, "models--*")
        ],
    }


def _folders(parent: Path, pattern: str) -> list[Path]:
    return sorted(found for found in parent.glob(pattern) if found.is_dir())


def _size_bytes(directory: Path) -> int:
    return sum(found.stat().st_size for found in directory.rglob("*") if found.is_file())


def _limits() -> Facts:
    """Returns the speed of all usable cores together, in loops that do nothing else."""
    from tokenweave import native

    if native.unavailable_reason() is not None:
        return {"limits": "need the native library"}
    threads = resources.num_threads()
    return {
        name: f"{native.measure_limit(name, threads, MEASURE_S):,.1f} {unit} on {threads} threads"
        for name, unit in UNITS.items()
    }


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else megabytes(size_bytes)


def _first_value(path: str, key: str) -> str | None:
    """Returns the text after `key:` in a file of such lines; None when no line has the key."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(key))
    return next(values, None)
