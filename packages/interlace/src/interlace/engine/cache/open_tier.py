"""Opens a tier of memory that a person has written, in a context of emucxl."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from interlace.cache.kv_tier import KvTierSpec
from interlace.errors import EngineError

if TYPE_CHECKING:
    from emucxl import Context, Tier
    from emucxl.providers import Provider

SHARE_OF_NODE = 0.8  # of a node's free memory, over its ranks, where a tier says no size


def open_tier(
    context: Context, purpose: str, spec: KvTierSpec, rank: int, num_ranks: int, notices: list[str]
) -> Tier:
    """Returns the rank's tier, called by its `purpose` and the name in `spec`.

    It has the bandwidths of its timing, or this machine's own where that is slower, of which it tells in `notices`.

    Raises:
        EngineError: it cannot work here.
    """
    from emucxl.errors import EmucxlError

    size_bytes = spec.size_bytes
    if size_bytes is None:
        size_bytes = 0 if spec.node is None else free_node_bytes(spec.node, spec.text) // num_ranks
    try:
        provider = spec.provider(rank, num_ranks)
        return _add_timed(context, f"{purpose}-{spec.name}", spec, size_bytes, provider, notices)
    except (EmucxlError, OSError, OverflowError) as error:
        raise EngineError(f"the tier {spec.text!r} cannot work here: {error}") from error


def _add_timed(
    context: Context, name: str, spec: KvTierSpec, size_bytes: int, provider: Provider, notices: list[str]
) -> Tier:
    from emucxl.errors import TooFastError

    timing, is_told = spec.timing, False
    while timing is not None and (timing.read_bandwidth_gbps or timing.write_bandwidth_gbps):
        try:
            return context.add_tier(name, size_bytes, provider, timing)
        except TooFastError as error:
            if not is_told:
                notices.append(f"the tier {spec.text!r} has this machine's own bandwidth: {error}")
            is_told = True
            if timing.read_bandwidth_gbps:
                timing = replace(timing, read_bandwidth_gbps=0.0)
            else:
                timing = replace(timing, write_bandwidth_gbps=0.0)
    return context.add_tier(name, size_bytes, provider, timing)


def free_node_bytes(node: int, text: str) -> int:
    """The part of a NUMA node's free memory that a tier may take.

    Raises:
        EngineError: there is no such node, or it does not tell.
    """
    try:
        lines = Path(f"/sys/devices/system/node/node{node}/meminfo").read_text().splitlines()
        free_kib = next(int(line.split()[3]) for line in lines if " MemFree:" in line)
    except (OSError, StopIteration, ValueError, IndexError) as error:
        raise EngineError(
            f"the tier {text!r} cannot work here: NUMA node {node} does not tell what is free of it; name a node "
            f"that is there, and a size (numa:{node}:8GB)"
        ) from error
    return int(free_kib * 1024 * SHARE_OF_NODE)
