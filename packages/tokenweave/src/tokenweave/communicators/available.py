"""Which communicators can be had here; for `doctor`."""

from __future__ import annotations

import re
from contextlib import suppress


def availability() -> dict[str, str | None]:
    """For each backend None when it can be used here, else the reason why not."""
    return {
        "null": None,
        "thread": None,
        "shm": _shm_reason(),
        "torch": _torch_reason(),
        "nccl": nccl_reason(),
        "symm_mem": symm_mem_reason(),
    }


def _shm_reason() -> str | None:
    from emucxl.shared_memory import unavailable_reason
    from tokenweave.communicators.shm_abi import library
    from tokenweave.errors import NativeError

    try:
        library()
    except NativeError as error:
        return str(error)
    return unavailable_reason()


def _torch_reason() -> str | None:
    from torch import distributed

    if not distributed.is_available():
        return "this build of torch has no torch.distributed"
    if not distributed.is_gloo_available():
        return "this build of torch has no gloo"
    return None


def nccl_reason() -> str | None:
    """Why ranks on GPUs cannot be joined over nccl here, or None."""
    from torch import distributed

    from tokenweave.kernels.cuda.available import device_reason

    if reason := device_reason():
        return reason
    if not distributed.is_available() or not distributed.is_nccl_available():
        return "this build of torch has no nccl"
    return None


def symm_mem_reason() -> str | None:
    """Why the fused kernels for GPUs cannot run here, or None."""
    from importlib.util import find_spec

    import torch
    from torch import distributed

    from tokenweave.kernels.cuda.available import device_reason

    if torch.version.hip is not None:
        return f"this torch is built for ROCm {torch.version.hip}; the kernels are for NVIDIA's GPUs"
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if reason := _triton_reason():
        return reason
    if not distributed.is_available() or find_spec("torch.distributed._symmetric_memory") is None:
        return "this build of torch has no symmetric memory (2.6 or newer, built with torch.distributed, is needed)"
    return device_reason()


def between_gpus(ranks_on_host: int | None = None) -> tuple[str, str]:
    """The communicator that joins ranks on this host's GPUs best, and why: "symm_mem" or "nccl".

    The ranks are on the first GPUs, one on each; on all of them unless a number is given.
    """
    from tokenweave.kernels.cuda.devices import separate_pairs

    if reason := symm_mem_reason():
        return "nccl", reason
    if separate := separate_pairs(ranks_on_host):
        pairs = ", ".join(f"{one} and {two}" for one, two in separate)
        return "nccl", f"devices {pairs} do not reach each other's memory"
    return "symm_mem", "all devices reach each other's memory"


def _triton_reason() -> str | None:
    from tokenweave.kernels.cuda.available import MIN_TRITON

    version = _triton_version()
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is not None and (int(numbers[1]), int(numbers[2])) >= MIN_TRITON:
        return None
    wanted = ".".join(map(str, MIN_TRITON))
    return (
        f"triton is {version}, and {wanted} or newer is needed: an older one lacks what the kernels call, or compiles "
        "a barrier that hangs; install a newer torch, which brings a newer triton"
    )


def _triton_version() -> str:
    """By its metadata, so that it is not imported: a process decides at the import whether it interprets kernels."""
    from importlib import metadata

    for name in ("triton", "pytorch-triton"):  # the second: as torch's nightly builds call it
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "of no known version"
