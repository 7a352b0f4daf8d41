"""The CUDA devices of this host, what they offer ranks, and their driver. Needs no triton."""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class CudaDevice:
    """A device that this process sees."""

    index: int
    name: str
    compute_capability: str  # "9.0"
    num_sms: int
    total_bytes: int
    free_bytes: int
    has_multicast: bool  # the switch between it and others adds, and copies to all of them


def cuda_devices() -> tuple[CudaDevice, ...]:
    """Every device of `torch.cuda`; none where torch finds none. Each is begun to be used, which takes memory there."""
    if not torch.cuda.is_available():
        return ()
    return tuple(map(_device, range(torch.cuda.device_count())))


def separate_pairs(num_devices: int | None = None) -> tuple[tuple[int, int], ...]:
    """The pairs of devices, lower index first, of which one does not reach the other's memory.

    Of the first `num_devices`, as far as this process sees them; of all unless it is given.
    """
    if not torch.cuda.is_available():
        return ()
    reaches = torch.cuda.can_device_access_peer
    count = torch.cuda.device_count()
    pairs = combinations(range(count if num_devices is None else min(num_devices, count)), 2)
    return tuple((one, two) for one, two in pairs if not (reaches(one, two) and reaches(two, one)))


def driver_version() -> str | None:
    """Returns the version of NVIDIA's driver in this kernel, such as "580.65.06"; None without one."""
    with suppress(OSError):
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", DRIVER_FILE.read_text())
        return found[1] if found else None
    return None


def driver_cuda_version() -> str | None:
    """Returns the newest CUDA that the driver's library takes, such as "13.0"; None without the library."""
    version = ctypes.c_int()
    with suppress(OSError, AttributeError):
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0:
            return f"{version.value // 1000}.{version.value % 1000 // 10}"
    return None


def _device(index: int) -> CudaDevice:
    from tokenweave.kernels.cuda import multicast

    properties = torch.cuda.get_device_properties(index)
    free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    return CudaDevice(
        index,
        properties.name,
        f"{properties.major}.{properties.minor}",
        properties.multi_processor_count,
        total_bytes,
        free_bytes,
        multicast.is_supported(index),
    )
