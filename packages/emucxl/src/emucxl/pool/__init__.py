"""pool: memory that several hosts (processes that stand for them, or real ones over one device) carve up and share.

docs/memory/pool.md tells the protocol and what it guarantees; native/include/emucxl/pool.h is the interface below.
"""

from __future__ import annotations

from emucxl.pool.hosts import Host, Region
from emucxl.pool.pool import Pool, named_pools, pool_path
from emucxl.pool.records import (
    HostInfo,
    HostState,
    PoisonRange,
    PoolStats,
    ReclaimReport,
    RegionInfo,
    RegionState,
    Sharing,
)

__all__ = [
    "Host",
    "HostInfo",
    "HostState",
    "PoisonRange",
    "Pool",
    "PoolStats",
    "ReclaimReport",
    "Region",
    "RegionInfo",
    "RegionState",
    "Sharing",
    "named_pools",
    "pool_path",
]
