"""Rotary position embedding: cos and sin of positions, as the kernels read them.

Frequencies are computed in float32, step by step as transformers does, so that the tables agree bit for bit.

Two kinds of scaling depend on how long the text is. As in transformers, a token's text is what has been read when the
token is computed: the whole prompt for its tokens, and everything up to itself for a token that was generated. So a
rotation depends on the request alone, however its prompt is cut and whatever else is in the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interlace.models.batch import ForwardBatch
from interlace.models.config import RopeConfig
from interlace.models.head_padding import HeadPadding
from interlace.models.placement import moved
from tokenweave.kernels.checks import CPU

_FIRST_ROWS = 4096  # of a table, which at least doubles whenever a position lies beyond it


class Rotations:
    """The rotations of the positions of a context, computed when they are first needed.

    A long context costs those who use it, not those who could. Thread safety: none.
    """

    def __init__(
        self,
        rope: RopeConfig,
        head_dim: int,
        max_position: int,
        padding: HeadPadding | None = None,
        device: torch.device = CPU,
    ) -> None:
        """For heads that are widened, `padding` says how; what is added to them is not rotated.

        Tables are computed on the CPU, so that their bits are the same everywhere, and read on `device`.
        """
        self.rope, self.head_dim, self._max_position, self._device = rope, head_dim, max_position, device
        self._padding = padding or HeadPadding(head_dim, head_dim)
        self._short = _Table(rope, self._frequencies(), max_position, device)
        self._both: Tensor | None = None  # the rows of the short table, and then those of the long one
        self._long = _Table(rope, self._frequencies(rope.original_max_position + 1), max_position, device)

    def of(self, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """A table [cos | sin], float32 (rows, width of a head), and each token's row in it, int32 (num_tokens,).

        The table is on the device, the rows are on the CPU as the batch is. A table that has grown is a new one.
        """
        end = max(batch.positions.tolist()) + 1
        if not self.rope.depends_on_length:
            return self._short.on_device(end), batch.positions
        lengths = batch.text_lengths()
        is_long = lengths > self.rope.original_max_position
        if self._both is not None:
            return self._both, batch.positions + is_long.int() * (len(self._both) // 2)
        if not is_long.any():
            return self._short.on_device(end), batch.positions
        if self.rope.scaling == "longrope" and is_long.all():
            return self._long.on_device(end), batch.positions
        rows = batch.positions.long()
        table = self._short.up_to(end)[rows]
        table[is_long] = self._of_long_texts(batch.positions[is_long], lengths[is_long])
        return moved(table, self._device), torch.arange(batch.num_tokens, dtype=torch.int32)

    def table(self, num_positions: int) -> Tensor:
        """The rotations of at least the first `num_positions`, in a text within the original context, on the device."""
        return self._short.on_device(num_positions)

    def keeps(self, table: Tensor) -> bool:
        """Whether `table`, given by `of`, is kept for other passes, and not made for one."""
        return any(table is kept for kept in (self._short.moved, self._long.moved, self._both))

    def complete(self) -> None:
        """Computes the tables to the end of the context, so that none grows under a captured pass."""
        if self.rope.scaling == "longrope":  # a pass may have texts of both kinds
            both = torch.cat([table.up_to(self._max_position) for table in (self._short, self._long)])
            self._both = both.to(self._device)
        else:
            self._short.on_device(self._max_position)

    def _of_long_texts(self, positions: Tensor, lengths: Tensor) -> Tensor:
        """cos and sin of tokens whose texts go beyond the original context: float32 (num_tokens, width of a head)."""
        if self.rope.scaling == "longrope":
            return self._long.up_to(int(positions.max()) + 1)[positions.long()]
        different, which = torch.unique(lengths, return_inverse=True)
        # One length at a time: the bits of a power may depend on where in a tensor it is computed.
        each = torch.stack([self._frequencies(length) for length in different.tolist()])
        return cos_sin(positions, each[which], self.rope)

    def _frequencies(self, length: int = 0) -> Tensor:
        return self._padding.half(frequencies(self.rope, self.head_dim, length))


class _Table:
    """cos and sin of the positions from 0 on, at the same frequencies for all."""

    def __init__(
        self, rope: RopeConfig, frequencies: Tensor, max_position: int, device: torch.device
    ) -> None:
        self._rope, self._frequencies, self._max_position = rope, frequencies, max_position
        self._rows = torch.empty(0, 2 * len(frequencies))
        self._device, self.moved = device, self._rows.to(device)  # the rows that are on the device

    def up_to(self, end: int) -> Tensor:
        """Rows for at least the positions before `end`, as far as the context goes."""
        known = len(self._rows)
        if end > known:
            wanted = min(self._max_position, max(end, 2 * known, _FIRST_ROWS))
            added = cos_sin(torch.arange(known, wanted), self._frequencies, self._rope)
            self._rows = torch.cat([self._rows, added])
        return self._rows

    def on_device(self, end: int) -> Tensor:
        """The same rows, where kernels read them."""
        rows = self.up_to(end)
        if len(self.moved) < len(rows):
            self.moved = rows.to(self._device)  # the host waits, as often as the table has doubled
        return self.moved


def cos_sin(positions: Tensor, frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """[cos | sin] of positions (n,) at frequencies (n or 1, head_dim / 2): float32 (n, head_dim).

    Column j and head_dim / 2 + j belong to the pair (j, head_dim / 2 + j) of a head ("neox" halves).
    """
    angles = positions.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1) * rope.attention_factor


def frequencies(rope: RopeConfig, head_dim: int, length: int = 0) -> Tensor:
    """Radians per position of each pair, in a text of `length` tokens: float32 (head_dim / 2,)."""
    scaled = _scaled(rope, head_dim, length)
    return scaled / torch.tensor(rope.divisors, dtype=torch.float32) if rope.divisors else scaled


def _scaled(rope: RopeConfig, head_dim: int, length: int) -> Tensor:
    if rope.scaling == "yarn":
        return _yarn(rope, head_dim)
    if rope.scaling == "longrope":
        return _longrope(rope, head_dim, length)
    plain = 1.0 / _powers(
        _dynamic_theta(rope, head_dim, length) if rope.scaling == "dynamic" else rope.theta, head_dim
    )
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "llama3":
        return _llama3(rope, plain)
    return plain


def _powers(theta: float, head_dim: int) -> Tensor:
    """theta to the power of 2j / head_dim: float32 (head_dim / 2,)."""
    return theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)


def _dynamic_theta(rope: RopeConfig, head_dim: int, length: int) -> float:
    """The base grows with the text: the slowest pair turns as far at its end as it did in the original context."""
    original = rope.original_max_position
    if length <= original or head_dim == 2:  # a single pair turns once per token, whatever the base
        return rope.theta
    stretch = rope.factor * length / original - (rope.factor - 1)
    return rope.theta * float(stretch ** (head_dim / (head_dim - 2)))


def _longrope(rope: RopeConfig, head_dim: int, length: int) -> Tensor:
    is_long = length > rope.original_max_position
    divisors = torch.tensor(rope.long_divisors if is_long else rope.short_divisors, dtype=torch.float32)
    return 1.0 / (divisors * _powers(rope.theta, head_dim)) / rope.factor


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Long wavelengths are divided by the factor, short ones kept, those between blended smoothly."""
    wavelength = 2 * math.pi / plain
    longest = rope.original_max_position / rope.low_freq_factor
    shortest = rope.original_max_position / rope.high_freq_factor
    smooth = (rope.original_max_position / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * plain / rope.factor + smooth * plain
    scaled = torch.where(wavelength > longest, plain / rope.factor, plain)
    return torch.where((wavelength >= shortest) & (wavelength <= longest), blended, scaled)


def _yarn(rope: RopeConfig, head_dim: int) -> Tensor:
    """Frequencies that turn often in the original context are kept, slow ones interpolated."""
    powers = _powers(rope.theta, head_dim)
    low, high = _yarn_range(rope, head_dim)
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    keep = 1 - ramp
    return (1.0 / (rope.factor * powers)) * (1 - keep) + (1.0 / powers) * keep


def _yarn_range(rope: RopeConfig, head_dim: int) -> tuple[float, float]:
    """The dimensions between which YaRN passes from extrapolation to interpolation."""

    def dimension(rotations: float) -> float:
        turns = rope.original_max_position / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high + 0.001 if low == high else high  # never an empty range: it divides
