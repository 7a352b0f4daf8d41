"""The device of an engine: on what kind of processor its ranks compute, and which one is whose.

Where this host has no GPU it is found out without torch, whose import takes longer than rank processes should wait for.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from interlace.engine.config import OF_GPUS
from interlace.environment import are_gpus_hidden
from interlace.errors import EngineError

if TYPE_CHECKING:
    import torch

    from interlace.engine.config import EngineConfig

DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")  # of Linux, and of Linux under Windows
_log = logging.getLogger("interlace")


def resolve_device(config: EngineConfig) -> str:
    """Returns "cpu" or "cuda": what `config.device` names, or for `auto` GPUs where this host has any that can compute.

    A communicator of GPUs alone makes `auto` these.

    Options that are of CPUs alone make `auto` the CPU: native kernels, shared memory, a modelled link, tiers of memory.

    Raises:
        EngineError: there is no such device here; the message says why, and what to do.
    """
    if config.device == "auto" and config.communicator in OF_GPUS:
        config = replace(config, device="cuda")
    if config.device == "cpu" or (config.device == "auto" and not _is_gpu_expected(config)):
        return "cpu"
    reason = _reason(config)
    if reason is None:
        return "cuda"
    if config.device == "cuda":
        raise EngineError(f"got device='cuda'; it cannot be had here: {reason}; or set device to 'cpu'")
    _log.warning(
        "this host has a GPU that cannot be used: %s. Computing on the CPU; to hear no more of it, set device to 'cpu'",
        reason,
    )
    return "cpu"


def device_of_rank(local_rank: int) -> torch.device:
    """The GPU of a host's rank: each has its own, or they share what there are.

    Under Triton's interpreter it is the CPU.
    """
    import torch

    if _is_interpreted():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def check_each_has_one(tp: int) -> None:
    """Raises EngineError where this host has fewer GPUs than ranks that are processes, which cannot share one.

    But where the user has them share one, for trials.
    """
    import torch

    from tokenweave.environment import may_ranks_share_gpus

    if _is_interpreted() or may_ranks_share_gpus() or tp <= (count := torch.cuda.device_count()):
        return
    raise EngineError(
        f"got tp={tp} on a host with {count} GPU{'s' if count > 1 else ''}; each rank needs one of its own: set tp to "
        f"at most {count}, device to 'cpu', or communicator to 'thread', whose ranks share what there are"
    )


def _is_gpu_expected(config: EngineConfig) -> bool:
    has_tiers = bool(config.kv_tiers) or config.weights_tier is not None
    is_of_cpus = config.kernels == "native" or config.communicator == "shm" or config.link is not None
    return (
        not (is_of_cpus or has_tiers)
        and not are_gpus_hidden()
        and any(Path(file).exists() for file in DRIVER_FILES)
    )


def _reason(config: EngineConfig) -> str | None:
    """Why the kernels of `config` cannot run on a GPU here, or None."""
    from tokenweave.kernels.cuda.available import device_reason, unavailable_reason

    if config.kernels == "reference":
        return device_reason()
    return None if config.device == "cuda" and _is_interpreted() else unavailable_reason()


def _is_interpreted() -> bool:
    """Whether Triton's kernels run on the CPU, for debugging and for tests: TRITON_INTERPRET=1 says so."""
    from importlib.util import find_spec

    if find_spec("triton") is None:
        return False
    from tokenweave.kernels.cuda.clock import is_interpreted

    return is_interpreted
