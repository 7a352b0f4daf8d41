"""The calls of a torch group on CPU tensors, over gloo.

Thread safety: as the communicator's, one thread at a time.

Invariants:
  1. Sums are taken here and not by gloo: the order of gloo's ring depends on where in the buffer an element lies, so
     its bits depend on what else is in the batch. Each rank gathers all parts and sums them in rank order; from three
     ranks and `TWO_STEP_BYTES` on it sums only its share and gathers the shares. Cost: at two ranks nothing; at three,
     tensors smaller than that travel 1.5 times the bytes of a ring.
  2. Every wait is one of `waits.Waits`. It lets go of the core and of Python's lock, so that another lane computes.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import AllToAllOptions, BroadcastOptions

from tokenweave.communicators.sums import sum_in_rank_order

if TYPE_CHECKING:
    from tokenweave.communicators.waits import Waits

TWO_STEP_BYTES = 64 * 1024
FRAME_BYTES = 4096  # a message this short goes in one broadcast; a longer one takes a second
LENGTH_BYTES = 8
UNBOUNDED = timedelta(days=1)


class HostGroup:
    """A group of `size` ranks as it serves CPU tensors, which are contiguous."""

    def __init__(self, group: Any, waits: Waits, size: int) -> None:
        self._group, self._waits, self._size = group, waits, size

    def all_reduce(self, tensor: Tensor) -> None:
        """Sums `tensor`, which is not empty, in rank order."""
        if self._size > 2 and tensor.nbytes >= TWO_STEP_BYTES:
            self._reduce_in_two_steps(tensor)
        else:
            parts = self.gather_bytes(_as_bytes(tensor), "all_reduce").view(tensor.dtype)
            sum_in_rank_order(list(parts.view(self._size, *tensor.shape)), out=tensor)

    def scatter_sums(self, tensor: Tensor, lengths: list[int], own: int, call: str) -> Tensor:
        """The sum of this rank's rows of `tensor` (n, ...): the `own` ones. `lengths` has how many each rank sums."""
        # gloo has no reduce-scatter of its own, and its order of summing would depend on the batch.
        row_bytes = tensor.nbytes // max(1, len(tensor))
        parts = tensor.new_empty(self._size, own, *tensor.shape[1:])
        sent = [length * row_bytes for length in lengths]
        self._all_to_all(tensor, parts, sent, [own * row_bytes] * self._size, call)
        sum_in_rank_order(list(parts), out=parts[0])
        return parts[0]

    def all_gather(self, tensor: Tensor, gathered: Tensor, call: str) -> None:
        self._waits.finish(self._group._allgather_base(_as_bytes(gathered), _as_bytes(tensor)), call)

    def gather_bytes(self, content: Tensor, call: str) -> Tensor:
        """Every rank's `content` (n,), one after the other: (size * n,). All bytes are visible after it."""
        gathered = content.new_empty(self._size * content.numel())
        self._waits.finish(self._group._allgather_base(gathered, content), call)
        return gathered

    def broadcast(self, tensor: Tensor, root: int, call: str) -> None:
        options = BroadcastOptions()
        options.rootRank = root
        self._waits.finish(self._group.broadcast([_as_bytes(tensor)], options), call)

    def broadcast_bytes(self, data: bytes | None, root: int, idle: bool) -> bytes:
        """The root's `data`; see `Communicator.broadcast_bytes`."""
        frame = torch.zeros(FRAME_BYTES, dtype=torch.uint8)
        in_frame = FRAME_BYTES - LENGTH_BYTES
        if data is not None:
            head = len(data).to_bytes(LENGTH_BYTES, "little") + data[:in_frame]
            frame[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        self._broadcast_at_leisure(frame, root, idle)
        received = frame.numpy().tobytes()
        length = int.from_bytes(received[:LENGTH_BYTES], "little")
        if length <= in_frame:
            return received[LENGTH_BYTES : LENGTH_BYTES + length]
        rest = bytearray(data[in_frame:] if data is not None else length - in_frame)
        self._broadcast_at_leisure(torch.frombuffer(rest, dtype=torch.uint8), root, idle=False)
        return received[LENGTH_BYTES:] + bytes(rest)

    def _broadcast_at_leisure(self, content: Tensor, root: int, idle: bool) -> None:
        """Without the group's own timeout: `Waits` has one, but not where the wait is idle."""
        options = BroadcastOptions()
        options.rootRank = root
        options.timeout = UNBOUNDED
        self._waits.finish(self._group.broadcast([content], options), "broadcast_bytes", idle)

    def _reduce_in_two_steps(self, tensor: Tensor) -> None:
        """Each rank is sent its share of every rank's tensor, sums it, and the shares are gathered."""
        share = -(-tensor.numel() // self._size)
        padded = tensor.new_zeros(self._size * share)
        padded[: tensor.numel()] = tensor.view(-1)
        received = torch.empty_like(padded)
        self._all_to_all(padded, received, [], [], "all_reduce")
        summed = tensor.new_empty(share)
        sum_in_rank_order(list(received.view(self._size, share)), out=summed)
        gathered = self.gather_bytes(_as_bytes(summed), "all_reduce").view(tensor.dtype)
        tensor.view(-1).copy_(gathered[: tensor.numel()])

    def _all_to_all(
        self, tensor: Tensor, received: Tensor, sent_bytes: list[int], received_bytes: list[int], call: str
    ) -> None:
        """Sends each rank its bytes of `tensor`, as many to each where their numbers are left out."""
        work = self._group.alltoall_base(
            _as_bytes(received), _as_bytes(tensor), received_bytes, sent_bytes, AllToAllOptions()
        )
        self._waits.finish(work, call)


def _as_bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor as (nbytes,) uint8, without a copy: gloo moves any dtype's bytes alike."""
    # Not view(-1): one element may be contiguous with any stride, which a view of another dtype would refuse.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
