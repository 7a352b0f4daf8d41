"""Shard: which part of a model one rank owns.

Everything that can be split is split as evenly as whole units allow: query heads, MLP columns, vocabulary rows.
Heads need not divide by the number of ranks. Where the query heads of one group fall to two ranks, both keep that
group's KV head: a rank's KV heads are those its query heads read.
"""

from __future__ import annotations

from dataclasses import dataclass

from interlace.errors import EngineError
from interlace.models.config import ModelConfig
from tokenweave.kernels import HeadLayout

COLUMN_ALIGNMENT = (
    32  # columns per panel of the packed weights, so that no rank gets a ragged panel in the middle
)


def partition(total: int, parts: int, index: int, alignment: int = 1) -> range:
    """The `index`-th of `parts` contiguous ranges of `range(total)`, as even as units of `alignment` allow."""
    units = -(-total // alignment)
    start, stop = (units * edge // parts * alignment for edge in (index, index + 1))
    return range(min(start, total), min(stop, total))


@dataclass(frozen=True)
class Shard:
    """One rank's part of a model."""

    rank: int
    size: int
    heads: range  # query heads
    kv_heads: range
    intermediate: range  # columns of the MLP, or of every expert alike
    vocab: range  # rows of the embedding and of the output head

    @classmethod
    def of(cls, config: ModelConfig, rank: int, size: int) -> Shard:
        """The shard of `rank` among `size`.

        Raises:
            EngineError: `rank` is not one of `size` ranks.
        """
        if not 0 <= rank < size:
            raise EngineError(f"got rank {rank} of {size}; expected a rank from 0 to {size - 1}")
        heads = partition(config.num_heads, size, rank)
        group = config.num_heads // config.num_kv_heads
        return cls(
            rank=rank,
            size=size,
            heads=heads,
            kv_heads=range(heads.start // group, (heads.stop - 1) // group + 1) if heads else range(0),
            intermediate=partition(config.intermediate_size, size, rank, COLUMN_ALIGNMENT),
            vocab=partition(config.vocab_size, size, rank, COLUMN_ALIGNMENT),
        )

    @classmethod
    def all_of(cls, config: ModelConfig, size: int) -> tuple[Shard, ...]:
        """The shards of all of `size` ranks."""
        return tuple(cls.of(config, rank, size) for rank in range(size))

    def columns(self, size: int) -> range:
        """The rank's columns of an MLP with `size` of them."""
        return partition(size, self.size, self.rank, COLUMN_ALIGNMENT)

    def head_layout(self, config: ModelConfig) -> HeadLayout:
        """The rank's own heads, numbered from 0."""
        group = config.num_heads // config.num_kv_heads
        kv_of_head = tuple(head // group - self.kv_heads.start for head in self.heads)
        return HeadLayout(len(self.heads), kv_of_head, config.head_dim)


def scale(heads: range, head_dim: int) -> range:
    """The rows that `heads` own in a projection matrix."""
    return range(heads.start * head_dim, heads.stop * head_dim)
