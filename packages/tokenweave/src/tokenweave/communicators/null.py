"""The null communicator: a group of one, so that the same engine code runs on a single rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenweave.communicators.base import DEFAULT_TIMEOUT_S, Communicator
from tokenweave.errors import CommunicatorError, RankError
from tokenweave.replay.records import CallSites

if TYPE_CHECKING:
    from torch import Tensor

    from tokenweave.kernels import Kernels


class NullCommunicator(Communicator):
    """Rank 0 of 1: every collective is the identity. Channel: none."""

    name = "null"

    def __init__(self, *, kernels: Kernels | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(0, 1, kernels=kernels, timeout_s=timeout_s)
        self._abort_reason: str | None = None
        self._closed = False

    def call_sites(self) -> CallSites:
        return CallSites()

    @property
    def no_graph_reason(self) -> None:
        """None: there are no calls to hold."""

    def barrier(self) -> None:
        self._check_usable()

    def check(self) -> None:
        self._check_usable()

    def abort(self, reason: str) -> None:
        self._abort_reason = self._abort_reason or reason

    def close(self) -> None:
        self._closed = True

    def _all_reduce(self, tensor: Tensor) -> None:
        self._check_usable()

    def _all_gather(self, tensor: Tensor, gathered: Tensor) -> None:
        self._check_usable()
        gathered.copy_(tensor)

    def _broadcast(self, tensor: Tensor, root: int) -> None:
        self._check_usable()

    def _broadcast_bytes(self, data: bytes | None, root: int, idle: bool) -> bytes:
        self._check_usable()
        return data or b""

    def _check_usable(self) -> None:
        if self._closed:
            raise CommunicatorError("the communicator is closed; make a new one")
        if self._abort_reason is not None:
            raise RankError(f"rank 0 aborted the job: {self._abort_reason}", rank=0)
