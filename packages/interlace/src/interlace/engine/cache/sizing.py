"""Sizing: how many blocks of KV cache a rank can hold."""

from __future__ import annotations

import torch

from emucxl import resources
from interlace.engine.cache.layout import CacheLayout
from interlace.engine.config import EngineConfig
from interlace.errors import CacheTooSmall, EngineError
from tokenweave.kernels import BLOCK_SIZE, blocks_for
from tokenweave.kernels.checks import CPU

SHARE_OF_MEMORY = 0.4  # of the memory free when the engine starts, over all ranks of a host
SHARE_OF_DEVICE_MEMORY = (
    0.9  # of what weights and a pass leave free; the rest is for other streams and fragments
)
MOST_BYTES = 2**63  # kv_cache_gb times 1e9 may be infinite


def affordable_blocks(
    config: EngineConfig,
    max_model_len: int,
    layout: CacheLayout,
    ranks_on_host: int,
    device: torch.device = CPU,
    pass_bytes: int = 0,
) -> int:
    """Returns `num_kv_blocks` where it is set, else what `kv_cache_gb` or a share of the free memory holds.

    The memory is that of `device`, of which a pass will take `pass_bytes`: the ranks of a host share the host's, and
    its GPUs where they are more than these. It is never more than all sequences of a pass can fill: see `notices_of`.

    Raises:
        CacheTooSmall: not even one block fits.
    """
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    wanted = config.max_num_seqs * blocks_for(max_model_len)
    if layout.block_bytes == 0:  # a rank without heads holds no cache
        return wanted
    if config.kv_cache_gb is not None:
        budget_bytes = int(min(config.kv_cache_gb * 1e9, float(MOST_BYTES)))
    else:
        budget_bytes = _share_bytes(ranks_on_host, device, pass_bytes)
    blocks = min(wanted, budget_bytes // layout.block_bytes)
    if blocks < 1:
        beside = f" beside {pass_bytes:,} of a pass" if pass_bytes else ""
        advice = "" if device.type == "cpu" else ", or lower max_num_batched_tokens, or raise tp"
        raise CacheTooSmall(
            f"got {budget_bytes:,} bytes for the KV cache{beside}; one block of {BLOCK_SIZE} tokens takes "
            f"{layout.block_bytes:,} bytes; raise kv_cache_gb or set num_kv_blocks{advice}"
        )
    return blocks


def notices_of(config: EngineConfig, max_model_len: int, layout: CacheLayout) -> tuple[str, ...]:
    """Says where `kv_cache_gb` is more than the sequences of a pass can fill, and is not taken."""
    if config.num_kv_blocks is not None or config.kv_cache_gb is None:
        return ()
    most_gb = config.max_num_seqs * blocks_for(max_model_len) * layout.block_bytes / 1e9
    if config.kv_cache_gb <= most_gb or not most_gb:
        return ()
    return (
        f"got kv_cache_gb={config.kv_cache_gb:g}; a rank takes {most_gb:.2f} of it: max_num_seqs={config.max_num_seqs} "
        f"sequences of {max_model_len} tokens fill no more. To use the rest, raise max_num_seqs",
    )


def _share_bytes(ranks_on_host: int, device: torch.device, pass_bytes: int) -> int:
    """Bytes of free memory that a rank takes unless it is told."""
    if device.type == "cpu":
        return int(available_memory_bytes() * SHARE_OF_MEMORY) // ranks_on_host
    left_bytes = max(0, free_device_bytes(device) - pass_bytes)
    return int(left_bytes * SHARE_OF_DEVICE_MEMORY) // ranks_on_one_device(ranks_on_host)


def ranks_on_one_device(ranks_on_host: int) -> int:
    """How many ranks of a host share a GPU."""
    return -(-ranks_on_host // torch.cuda.device_count())


def free_device_bytes(device: torch.device) -> int:
    """Memory of a device other than the CPU that no process has taken.

    Raises:
        EngineError: nobody tells.
    """
    if device.type != "cuda":
        raise EngineError(f"nobody tells how much memory {device} has: set kv_cache_gb or num_kv_blocks")
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return free_bytes


def available_memory_bytes() -> int:
    """Memory that can be had before the kernel swaps or kills, in the machine and in every cgroup around this process.

    Raises:
        EngineError: the system does not tell.
    """
    available = resources.available_bytes()
    if available is None:
        raise EngineError(
            "the system does not tell how much memory is available (/proc/meminfo): set kv_cache_gb or num_kv_blocks"
        )
    return available
