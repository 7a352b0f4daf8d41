"""Which tokens the penalised sequences have, kept on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.sampling.device.copies import send
from tokenweave.sampling.row import Int32Array


class TokenSlots:
    """A slot for each sequence that has penalties; others need none. 4 bytes for each slot and token of the vocabulary.

    `add` a sequence before it is first sampled: its tokens go over once. From then on the device notes each token that
    it samples. `remove` it when it ends. A sequence that is preempted and computed again keeps its tokens, so it may
    keep its slot; or it is removed, and added again with all of its tokens.

    Thread safety: none; all calls, and the sampler's, come from one thread and go to one stream.

    Invariants
    1. An entry is twice the number of times that the token is in the output, and one more if it is in the prompt.
    2. The last row is `spare`, of no sequence. Rows without penalties read and write it; their penalties are such that
       what it has changes nothing.
    3. A taken slot's number of tokens counts those that the device is about to note; a free slot has none.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.spare = num_slots
        self._num_tokens: list[int | None] = [None] * num_slots
        self._free = list(reversed(range(num_slots)))
        self._entries = torch.zeros(num_slots + 1, vocab_size, dtype=torch.int32, device=device)

    def add(self, tokens: Int32Array, num_prompt: int) -> int:
        """The slot that now has `tokens` (num_tokens,): `num_prompt` of the prompt, then the output.

        Raises KernelError where no slot is free, and for tokens outside the vocabulary.
        """
        vocab_size = self._entries.shape[1]
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise KernelError(
                f"sample: got tokens from {tokens.min()} to {tokens.max()}, expected ids of a vocabulary of "
                f"{vocab_size}"
            )
        if not 0 <= num_prompt <= len(tokens):
            raise KernelError(f"sample: num_prompt is {num_prompt}, expected 0 to {len(tokens)}, all tokens")
        if not self._free:
            raise KernelError(
                f"sample: all {self.spare} slots are taken; remove a sequence, or make the sampler with more"
            )
        slot = self._free.pop()
        self._num_tokens[slot] = len(tokens)
        entries = self._entries[slot].zero_()
        host = torch.from_numpy(tokens.astype(np.int64))
        places = send(host, torch.empty_like(host, device=entries.device))
        entries.scatter_(0, places[:num_prompt], 1)
        output = places[num_prompt:]
        entries.scatter_add_(0, output, torch.full_like(output, 2, dtype=torch.int32))
        return slot

    def remove(self, slot: int) -> None:
        """Gives `slot` back. Raises KernelError where it is not taken."""
        if not self._is_taken(slot):
            raise KernelError(f"sample: slot {slot} is not taken, expected one that `add` gave")
        self._num_tokens[slot] = None
        self._free.append(slot)

    def has(self, slot: int, num_tokens: int) -> bool:
        """Whether `slot` is taken by a sequence of so many tokens."""
        return self._is_taken(slot) and self._num_tokens[slot] == num_tokens

    def expect(self, slot: int) -> None:
        """Counts a token that `note` is about to add."""
        num_tokens = self._num_tokens[slot] if self._is_taken(slot) else None
        if num_tokens is not None:
            self._num_tokens[slot] = num_tokens + 1

    def rows(self, slots: Tensor) -> Tensor:
        """The entries (num_rows, vocab_size) int32 of `slots` (num_rows,) int64."""
        return self._entries.index_select(0, slots)

    def note(self, slots: Tensor, tokens: Tensor) -> None:
        """Adds to each of `slots` its token of `tokens` (num_rows,) int64; nothing where that is -1."""
        amounts = (tokens >= 0).to(torch.int32) * 2
        places = slots * self._entries.shape[1] + tokens.clamp(min=0)
        self._entries.view(-1).scatter_add_(0, places, amounts)

    def _is_taken(self, slot: int) -> bool:
        return 0 <= slot < self.spare and self._num_tokens[slot] is not None
