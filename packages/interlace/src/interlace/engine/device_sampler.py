"""Sampling where the logits are: what comes back from the device is token ids, and the logprobs that were asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interlace.engine.sampler import SampledOnHost, SampledToken, row_of, sampled_token
from interlace.engine.sequence import Sequence
from tokenweave.sampling import DeviceSampler
from tokenweave.sampling.device import DeviceSampled
from tokenweave.sampling.device.copies import synchronize

WaitFor = Callable[[torch.cuda.Event], None]


class SampledThere:
    """A batch that is being sampled on a device."""

    def __init__(self, sampled: DeviceSampled, sequences: list[Sequence], wait_for: WaitFor) -> None:
        self._sampled, self._sequences, self._wait_for = sampled, sequences, wait_for
        self.tokens = sampled.tokens

    def fetch(self) -> list[SampledToken | Exception]:
        fetched = self._sampled.fetch(self._wait_for)
        return [
            sampled_token(found, lambda tokens, own=own: [own[token] for token in tokens], sequence)  # type: ignore[misc]
            for found, own, sequence in zip(fetched.rows, fetched.logits, self._sequences, strict=True)
        ]


class SamplerOnDevice:
    """Samples up to `max_num_seqs` rows of `vocab_size` logits on `device`, for whose events `wait_for` waits.

    Invariant: each penalised sequence of the last batch has a slot of the device's, which counts its tokens. Others may
    keep theirs until it is needed: a sequence that is preempted comes back with all that it had.
    """

    def __init__(
        self, vocab_size: int, max_num_seqs: int, device: torch.device, wait_for: WaitFor = synchronize
    ) -> None:
        self._wait_for = wait_for
        self._device = DeviceSampler(vocab_size, max_num_seqs, max_num_seqs, device)
        self._slots: dict[Sequence, int] = {}
        self._num_slots = max_num_seqs

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> SampledThere | SampledOnHost:
        """Sequences may have a pending token: the device knows it."""
        if not sequences:  # a pass over a part of a prompt
            return SampledOnHost([])
        rows = [row_of(sequence) for sequence in sequences]
        penalised = [each for each, row in zip(sequences, rows, strict=True) if row.has_penalties]
        self._take_slots(penalised)
        slots = [self._slots.get(sequence) for sequence in sequences]
        return SampledThere(self._device.sample(logits, rows, slots), sequences, self._wait_for)

    def forget(self, sequence: Sequence) -> None:
        slot = self._slots.pop(sequence, None)
        if slot is not None:
            self._device.slots.remove(slot)

    def _take_slots(self, sequences: list[Sequence]) -> None:
        """A slot for each of `sequences`; where none is free, those are taken that sequences outside the batch keep."""
        new = [sequence for sequence in sequences if sequence not in self._slots]
        if len(self._slots) + len(new) > self._num_slots:
            for idle in self._slots.keys() - set(sequences):
                self.forget(idle)
        for sequence in new:
            tokens = sequence.tokens[: sequence.num_tokens]
            self._slots[sequence] = self._device.slots.add(tokens, sequence.num_prompt)
