"""DeviceSampler: a batch is sampled where its logits are, and token ids are what comes back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenweave.errors import KernelError
from tokenweave.sampling.device import rules
from tokenweave.sampling.device.copies import send
from tokenweave.sampling.device.parameters import NUM_FIELDS, Features, Parameters, packed
from tokenweave.sampling.device.sampled import DeviceSampled, columns_of, logprob_columns
from tokenweave.sampling.device.slots import TokenSlots
from tokenweave.sampling.row import SamplingRow

MAX_AT_ONCE = 1 << 23  # scores; each takes up to about 35 bytes on the way


class DeviceSampler:
    """Samples rows of `vocab_size` logits on `device`, up to `max_rows` at once, as `reference_sample` does.

    `sample` is `prepare` (on the host), `compute` (on the device), and the start of the way back. Only `fetch`, of what
    it gives, waits for the device. Sequences that have penalties need one of `num_slots` slots: see `slots`.

    `compute` can be captured in a CUDA graph, one for each number of rows and `Features`; features that no row asks for
    cost time and change no token. It reads the logits, the table that `prepare` fills, and the entries of `slots`,
    which it writes too; the latter two never move. A replay overwrites what the one before gave: `DeviceSampled` is to
    be made of that first.

    Thread safety: none; all calls come from one thread and go to one stream.
    """

    def __init__(
        self, vocab_size: int, max_rows: int, num_slots: int, device: torch.device | str = "cpu"
    ) -> None:
        self.vocab_size = vocab_size
        self.slots = TokenSlots(num_slots, vocab_size, torch.device(device))
        self._table = torch.zeros(max_rows, NUM_FIELDS, dtype=torch.int64, device=device)

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], slots: Sequence[int | None]
    ) -> DeviceSampled:
        """The tokens of `rows`, by their logits (len(rows), vocab_size) float32 on the device.

        `slots` has one for each row, None where it has no penalties. Raises KernelError for what does not fit.
        """
        if logits.dtype != torch.float32 or logits.shape != (len(rows), self.vocab_size):
            raise KernelError(
                f"sample: logits are {logits.dtype} of shape {tuple(logits.shape)}, expected float32 of "
                f"({len(rows)}, {self.vocab_size})"
            )
        features = self.prepare(rows, slots, len(rows))
        return DeviceSampled(self.compute(logits, features), rows)

    def prepare(self, rows: Sequence[SamplingRow], slots: Sequence[int | None], num_rows: int) -> Features:
        """Sends what `rows` ask for to the device, in one copy; rows beyond them, up to `num_rows`, are padding.

        The next `compute` must be of these: their slots count its tokens already.
        """
        if not len(slots) == len(rows) <= num_rows <= len(self._table):
            raise KernelError(
                f"sample: got {len(slots)} slots of {len(rows)} rows, padded to {num_rows}; expected a slot or None "
                f"for each, and at most {len(self._table)} rows (max_rows)"
            )
        taken = [self._slot_of(row, slot) for row, slot in zip(rows, slots, strict=True)]
        send(packed(rows, taken, num_rows, self.slots.spare, self.vocab_size), self._table[:num_rows])
        for slot in taken:
            self.slots.expect(slot)
        return Features.of(rows, self.vocab_size)

    def compute(self, logits: Tensor, features: Features) -> Tensor:
        """Samples logits (num_rows, vocab_size) of the rows that were prepared; `DeviceSampled` reads what it gives."""
        num_at_once = max(1, MAX_AT_ONCE // self.vocab_size)
        tables = torch.split(self._table[: len(logits)], num_at_once)
        found = [
            self._compute(part, Parameters.of(table), features)
            for part, table in zip(torch.split(logits, num_at_once), tables, strict=True)
        ]
        return torch.cat(found)

    def _compute(self, logits: Tensor, choice: Parameters, features: Features) -> Tensor:
        largest, tokens = logits.max(dim=1)
        scores, best = logits, largest
        if features.penalises:
            scores = rules.penalised(logits, self.slots.rows(choice.slot), choice)
            best, tokens = scores.max(dim=1)
        if features.draws:
            drawn = rules.draw(scores, best, choice, features)
            tokens = torch.where(choice.temperature.squeeze(1) == 0, tokens, drawn)
        tokens = torch.where(largest.isfinite(), tokens, -1)
        if features.penalises:
            self.slots.note(choice.slot, tokens)
        columns = columns_of(tokens, largest + 0.0)  # no -0
        if features.max_logprobs is not None:
            columns += logprob_columns(logits, largest, tokens, features.max_logprobs)
        return torch.cat(columns, dim=1)

    def _slot_of(self, row: SamplingRow, slot: int | None) -> int:
        """Raises KernelError for a slot that cannot be the row's."""
        if not row.has_penalties:
            return self.slots.spare
        if slot is None or not self.slots.has(slot, len(row.tokens)):
            raise KernelError(
                f"sample: a row of {len(row.tokens)} tokens with penalties came with the slot {slot}, expected the one "
                f"that `slots.add` gave for its tokens"
            )
        return slot
