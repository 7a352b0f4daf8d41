"""Programs for the ranks of a group on GPUs, as far as they need none. Each takes the rank's communicator first."""

from __future__ import annotations

from typing import Any

from interlace.engine.weaving.gpu_prices import take_ctas


def taking_ctas(comm: Any, table: Any) -> int:
    """Takes the CTAs of rank 0's table; how many the largest reductions take."""
    return take_ctas(comm, table if comm.rank == 0 else None)
