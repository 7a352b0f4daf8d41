"""The findings of `interlace doctor` about CUDA: devices, versions, and what ranks on them could use."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from interlace.cli.console import megabytes

if TYPE_CHECKING:
    from tokenweave.kernels.cuda.devices import CudaDevice

Facts = dict[str, Any]


def examine_cuda() -> Facts:
    """Returns what there is; without a device the reason alone, and what to do. Needs torch."""
    import torch

    from tokenweave.kernels.cuda import devices

    found = devices.cuda_devices()
    if not found:
        return {"devices": f"none: {_why_none()}"}
    newest = devices.driver_cuda_version() or "unknown"
    return {
        "devices": [asdict(device) for device in found],
        "driver": f"{devices.driver_version() or 'unknown'}, takes CUDA up to {newest}",
        "torch": f"built for CUDA {torch.version.cuda}",
        "kernels": _kernels(),
        **_between(found),
    }


def device_text(device: Facts) -> str:
    """One line about a device of `examine_cuda`."""
    free, total = (megabytes(device[name]) for name in ("free_bytes", "total_bytes"))
    return (
        f"{device['name']}, compute capability {device['compute_capability']}, {device['num_sms']} SMs, {free} of "
        f"{total} free"
    )


def _between(found: tuple[CudaDevice, ...]) -> Facts:
    """Returns what ranks on several devices would use."""
    from tokenweave.communicators.available import between_gpus
    from tokenweave.kernels.cuda.devices import separate_pairs

    without = [str(device.index) for device in found if not device.has_multicast]
    multicast = f"not on {', '.join(without)}" if without else "available"
    if len(found) == 1:
        return {"peers": "none: there is one device", "multicast": multicast, "between ranks": "not needed"}
    pairs = ", ".join(f"{one} and {two}" for one, two in separate_pairs())
    communicator, why = between_gpus()
    return {
        "peers": f"{pairs} do not reach each other" if pairs else "all reach each other",
        "multicast": multicast,
        "between ranks": f"{communicator}: {why}",
    }


def _why_none() -> str:
    """Why there is no device, and what to do about it."""
    import torch

    from tokenweave.kernels.cuda.available import device_reason
    from tokenweave.kernels.cuda.devices import driver_version

    driver = driver_version()
    if driver is None:
        built = "" if torch.version.cuda else " and a torch built for CUDA"
        todo = f"to use a GPU, install NVIDIA's driver{built}"
    elif torch.version.cuda is None:
        todo = f"NVIDIA's driver {driver} is here: install a torch built for CUDA"
    else:
        todo = f"NVIDIA's driver is {driver}: see what nvidia-smi lists, and whether CUDA_VISIBLE_DEVICES hides it"
    return f"{device_reason()}; {todo}"


def _kernels() -> str:
    from tokenweave.kernels.cuda.available import unavailable_reason

    reason = unavailable_reason()
    return f"unavailable: {reason}" if reason else "available"
