"""Memory of one device behind a multicast object of its own, by the CUDA driver: multimem instructions with one GPU.

With one device in it a sum has one part and a store one target. That says whether the switch's path computes what it
should, not how fast a switch is.

Structures and constants are those of cuda.h, which have not changed since CUDA 12.1.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenweave.errors import KernelError

MULTICAST_SUPPORTED = 132  # CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED
PINNED, ON_DEVICE, READ_WRITE, RECOMMENDED = 1, 1, 3, 1


class _Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class _AllocationProperties(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("windows_data", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    ]


class _AccessDescription(ctypes.Structure):
    _fields_ = [("location", _Location), ("flags", ctypes.c_int)]


class _MulticastProperties(ctypes.Structure):
    _fields_ = [
        ("num_devices", ctypes.c_uint),
        ("size", ctypes.c_size_t),
        ("handle_types", ctypes.c_ulonglong),
        ("flags", ctypes.c_ulonglong),
    ]


@dataclass(frozen=True)
class _Interface:
    """The interface through which torch sees memory that it has not allocated."""

    __cuda_array_interface__: dict[str, Any]


def is_supported(device_index: int) -> bool:
    """Whether the device and its driver have multicast objects; False where the driver cannot be asked."""
    try:
        return _has_multicast(*_driver_of(device_index))
    except (KernelError, OSError):
        return False


def allocate(size_bytes: int, device_index: int = 0) -> tuple[Tensor, int]:
    """(size_bytes,) uint8 on the device, and the multicast address of the same bytes. Never freed.

    Raises:
        KernelError: the device or its driver has no multicast objects, or refuses one of a single device.
    """
    driver, device = _driver_of(device_index)
    if not _has_multicast(driver, device):
        raise KernelError("the device has no multicast objects; it needs a Hopper GPU behind an NVSwitch")
    wanted = _MulticastProperties(num_devices=1, size=size_bytes)
    unit = ctypes.c_size_t()
    _call(driver, "cuMulticastGetGranularity", ctypes.byref(unit), ctypes.byref(wanted), RECOMMENDED)
    wanted.size = -(-size_bytes // unit.value) * unit.value
    group = ctypes.c_ulonglong()
    _call(driver, "cuMulticastCreate", ctypes.byref(group), ctypes.byref(wanted))
    _call(driver, "cuMulticastAddDevice", group, device)
    memory = ctypes.c_ulonglong()
    location = _Location(ON_DEVICE, device_index)
    properties = _AllocationProperties(type=PINNED, location=location)
    size, none = ctypes.c_size_t(wanted.size), ctypes.c_ulonglong(0)
    _call(driver, "cuMemCreate", ctypes.byref(memory), size, ctypes.byref(properties), none)
    zero = ctypes.c_size_t(0)
    _call(driver, "cuMulticastBindMem", group, zero, memory, zero, size, none)
    own, shared = (_map(driver, handle, size, unit, location) for handle in (memory, group))
    view = {"shape": (size_bytes,), "typestr": "|u1", "data": (own, False), "version": 2}
    local = torch.as_tensor(_Interface(view), device=f"cuda:{device_index}")
    local.zero_()
    return local, shared


def _driver_of(device_index: int) -> tuple[ctypes.CDLL, ctypes.c_int]:
    """The driver, and its handle of the device."""
    torch.cuda.init()
    driver, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    _call(driver, "cuDeviceGet", ctypes.byref(device), device_index)
    return driver, device


def _has_multicast(driver: ctypes.CDLL, device: ctypes.c_int) -> bool:
    supported = ctypes.c_int()
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(supported), MULTICAST_SUPPORTED, device)
    return bool(supported.value)


def _map(
    driver: ctypes.CDLL,
    handle: ctypes.c_ulonglong,
    size: ctypes.c_size_t,
    alignment: ctypes.c_size_t,
    location: _Location,
) -> int:
    address, nowhere = ctypes.c_ulonglong(), ctypes.c_ulonglong(0)
    zero, none = ctypes.c_size_t(0), ctypes.c_ulonglong(0)
    _call(driver, "cuMemAddressReserve", ctypes.byref(address), size, alignment, nowhere, none)
    _call(driver, "cuMemMap", address, size, zero, handle, none)
    access = _AccessDescription(location, READ_WRITE)
    _call(driver, "cuMemSetAccess", address, size, ctypes.byref(access), ctypes.c_size_t(1))
    return address.value


def _call(driver: ctypes.CDLL, name: str, *arguments: Any) -> None:
    function = getattr(driver, name, None)
    if function is None:
        raise KernelError(f"the CUDA driver has no {name}; it needs 12.1 or newer")
    status = function(*arguments)
    if status != 0:
        raise KernelError(f"{name} failed with CUDA driver error {status}")
