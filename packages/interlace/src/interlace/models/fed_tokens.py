"""Fed tokens: the last pass's samples, which the next one reads on the device before the host knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenweave.communicators import Communicator


class FedTokens:
    """The tokens of up to `max_rows` rows of the last pass, in memory of `device` that never moves.

    A batch names such a token by -1 - its row, where it has the ids of others.
    """

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._tokens = torch.zeros(max_rows, dtype=torch.int32, device=device)

    def take(self, sampled: Tensor | None, communicator: Communicator) -> None:
        """Has the tokens (num_rows,) of rank 0 on every rank; only rank 0 passes any. A collective call."""
        if sampled is not None:
            self._tokens[: len(sampled)].copy_(sampled)
        if communicator.size > 1:
            communicator.broadcast(self._tokens)

    def resolve(self, token_ids: Tensor) -> Tensor:
        """token_ids (num_tokens,) int32, with the tokens that it names.

        A row that no token could be taken from gives token 0: its request ends with an error, whatever is computed.
        """
        rows = (-1 - token_ids).clamp_(min=0)
        fed = self._tokens.index_select(0, rows).clamp_(min=0)
        return torch.where(token_ids < 0, fed, token_ids)
