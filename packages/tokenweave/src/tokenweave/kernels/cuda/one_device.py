"""Several ranks on one device, a stream for each, in one process: to check and to time the kernels where one GPU is.

Their memory is one device's, so nothing crosses a link: what is measured is the kernels' own cost.

Invariants:
  1. All ranks' CTAs run at once, or they would wait for each other in vain: size * num_ctas must fit on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenweave.kernels.arguments import ResidualNorms
from tokenweave.kernels.cuda import launch
from tokenweave.kernels.cuda.sharing import WORDS_PER_CTA, CtaTable, Meeting, slots_bytes

if TYPE_CHECKING:
    from collections.abc import Callable


class OneDevice:
    """`size` ranks, each with room for `max_tokens` rows in `hidden[rank]` and in `residual[rank]`."""

    def __init__(
        self,
        size: int,
        max_tokens: int,
        hidden_size: int,
        dtype: torch.dtype,
        *,
        device: str = "cuda",
        num_ctas: int = 16,
        rows_per_cta: int = 1,
        timeout_s: float = 5.0,
    ) -> None:
        self.size = size
        self.device = torch.device(device)
        self.hidden = [self._zeros((max_tokens, hidden_size), dtype) for _ in range(size)]
        self.residual = [self._zeros((max_tokens, hidden_size), torch.float32) for _ in range(size)]
        self.weight = torch.ones(hidden_size, dtype=dtype, device=self.device)
        self.has_weight = True  # whether the residual is normed before it is given on
        self.post_weight: Tensor | None = None
        self.pads = [self._zeros((num_ctas, WORDS_PER_CTA, size), torch.int32) for _ in range(size)]
        row_bytes = hidden_size * dtype.itemsize
        slots = slots_bytes(size, num_ctas, rows_per_cta, row_bytes)
        self._slots = [self._zeros((slots,), torch.uint8) for _ in range(size)]
        self._rows_per_cta = rows_per_cta
        self._buffer_table, self._slot_table = self._table(self.hidden), self._table(self._slots)
        pads = self._table(self.pads)
        on_gpu = self.device.type == "cuda"
        self.meetings = [
            Meeting(
                rank=rank,
                size=size,
                num_ctas=num_ctas,
                pads=pads,
                epochs=self._zeros((num_ctas,), torch.int32),
                failed=self._zeros((1,), torch.int32),
                mailbox=torch.zeros(2, dtype=torch.int64, pin_memory=on_gpu),
                timeout_ns=int(timeout_s * 1e9),
                table=CtaTable.always(num_ctas),
            )
            for rank in range(size)
        ]
        self._streams = [torch.cuda.Stream(self.device) for _ in range(size)] if on_gpu else []

    def by_peers(self, rank: int, num_tokens: int, eps: float = 1e-5) -> None:
        """`rank`'s kernel of the peer-pointer path, on the current stream."""
        hidden, residual = self.hidden[rank][:num_tokens], self.residual[rank][:num_tokens]
        launch.by_peers(self.meetings[rank], self._buffer_table, 0, hidden, residual, self.norms(eps))

    def in_one_shot(self, rank: int, num_tokens: int, eps: float = 1e-5) -> None:
        """`rank`'s kernel of the one-shot path, on the current stream."""
        hidden, residual = self.hidden[rank][:num_tokens], self.residual[rank][:num_tokens]
        launch.in_one_shot(
            self.meetings[rank],
            self._slot_table,
            self._rows_per_cta,
            hidden,
            residual,
            self.norms(eps),
        )

    def norms(self, eps: float) -> ResidualNorms:
        """The norms of the next calls."""
        return ResidualNorms(self.weight if self.has_weight else None, eps, self.post_weight)

    def on_all_ranks(self, kernel: Callable[[int, int], None], num_tokens: int) -> None:
        """Launches every rank's `kernel` on a stream of its own, between the work before and after on this one."""
        here = torch.cuda.current_stream(self.device)
        for rank, stream in enumerate(self._streams):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                kernel(rank, num_tokens)
        for stream in self._streams:
            here.wait_stream(stream)

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _table(self, tensors: list[Tensor]) -> Tensor:
        addresses = [tensor.data_ptr() for tensor in tensors]
        return torch.tensor(addresses, dtype=torch.int64, device=self.device)
