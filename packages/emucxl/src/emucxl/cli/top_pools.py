"""The pools of `emucxl top`: those in /dev/shm, and those that were named."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from emucxl.errors import EmucxlError


def pools(named: list[str]) -> list[dict[str, Any]]:
    """Lists each pool's regions and their holders; for a pool that cannot be read, why not."""
    from emucxl.pool import named_pools, pool_path

    paths = dict.fromkeys(pool_path(name) for name in [*named_pools(), *named])
    return [_pool(str(path)) for path in paths]


def _pool(path: str) -> dict[str, Any]:
    from emucxl.pool import Pool

    try:
        pool = Pool.open(path, read_only=True)
        try:
            stats, hosts, regions = pool.stats(), pool.hosts(), pool.regions()
        finally:
            pool.close()
    except (
        EmucxlError,
        ValueError,
    ) as error:  # gone, another user's, damaged, or changing too fast to be read
        return {"path": path, "error": str(error)}
    return {
        "path": path,
        "size_bytes": stats.size_bytes,
        "free_bytes": stats.free_bytes,
        "held_bytes": stats.held_extents * stats.extent_bytes,
        "retired_bytes": stats.retired_extents * stats.extent_bytes,
        "hosts": [asdict(host) | {"state": host.state.name.lower()} for host in hosts],
        "regions": [
            asdict(region) | {"state": region.state.name.lower(), "sharing": region.sharing.name.lower()}
            for region in regions
        ],
    }
