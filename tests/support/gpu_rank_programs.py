"""Programs for the ranks of a group on GPUs, as far as they need none. Each takes the rank's communicator first."""

from __future__ import annotations

from typing import Any

from interlace.engine.weaving.gpu_prices import agree_on_ctas


def agreed(comm: Any, table: Any, is_woven: bool) -> bool:
    """Takes the CTAs of rank 0's table for a pass, if there are some."""
    ctas = agree_on_ctas(comm, table if comm.rank == 0 else None)
    if ctas is not None:
        ctas.take(is_woven)
    return ctas is not None
