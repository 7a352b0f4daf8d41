"""Which hosts of a pool may still turn out to be gone, and how long that takes.

Of a host on another machine, or from before a restart, only its silence tells. An observer has to see that for a lease
before it fences the host, and for another one before it frees what the host held.
"""

from __future__ import annotations

from collections.abc import Sequence

from emucxl.pool.records import HostInfo, HostState

# Beyond a lease: for the turns of the observer.
_MORE_LEASES, _MORE_S = 0.25, 0.2


class Patience:
    """The hosts' heartbeats that one observer has seen since it began to wait."""

    def __init__(self) -> None:
        self._heartbeats: dict[tuple[int, int], int] = {}
        self._since_s: dict[tuple[int, int, HostState], float] = {}

    def waits_for(self, hosts: Sequence[HostInfo], now_s: float) -> list[HostInfo]:
        """The hosts of which more will be known in less than a lease."""
        return [host for host in hosts if self._is_open(host, now_s)]

    def _is_open(self, host: HostInfo, now_s: float) -> bool:
        slot = (host.slot, host.epoch)
        spoke = self._heartbeats.setdefault(slot, host.heartbeats) != host.heartbeats
        since_s = self._since_s.setdefault((*slot, host.state), now_s)
        if host.state is HostState.ACTIVE:  # on this clock its lease is told at once
            may_change = host.silence_s is None and not spoke
        else:
            may_change = host.state is HostState.FENCED
        return may_change and now_s - since_s < (1 + _MORE_LEASES) * host.lease_s + _MORE_S
