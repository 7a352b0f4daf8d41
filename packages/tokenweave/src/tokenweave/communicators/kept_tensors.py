"""The tensors of the last calls on streams: kept, because to torch's allocator a tensor is free once the host drops it.

A plan's handlers drop a tensor when the step that reads it is issued, and the memory may be the next tensor's of the
stream that made it while another lane's stream still reads it.

Thread safety: as the communicator's, one thread at a time.

Invariant: what a call took or gave is kept until `KEPT_CALLS` later ones. A plan has two parts. When a part's next call
is issued, the streams of both lanes have been told to wait for whoever reads what its last call took or gave; so two
calls would do, and the others have room for what a pass calls beside its reductions.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

KEPT_CALLS = 4


class KeptTensors:
    """The tensors that the last `KEPT_CALLS` calls on CUDA tensors took and gave."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Tensor | None, ...]] = deque(maxlen=KEPT_CALLS)

    def keep(self, taken: Tensor, *others: Tensor | None) -> None:
        """Notes the tensors of a call. The host's own need no keeping: its calls return when they are done."""
        if taken.is_cuda:
            self._calls.append((taken, *others))

    def clear(self) -> None:
        self._calls.clear()
