"""Shards: every part of a model belongs to exactly one rank, whatever divides."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.errors import EngineError
from interlace.models.shard import Shard, partition
from support.configs import SMOLLM2


@given(total=st.integers(0, 2000), parts=st.integers(1, 17), alignment=st.sampled_from([1, 2, 16, 32]))
def test_partition_covers_everything_once_and_evenly(total: int, parts: int, alignment: int) -> None:
    pieces = [partition(total, parts, index, alignment) for index in range(parts)]
    assert [item for piece in pieces for item in piece] == list(range(total))
    units = [-(-len(piece) // alignment) for piece in pieces]
    assert max(units) - min(units) <= 1


@given(group=st.integers(1, 8), num_kv_heads=st.integers(1, 8), size=st.integers(1, 12))
def test_each_query_head_has_one_owner_who_holds_its_kv_head(
    group: int, num_kv_heads: int, size: int
) -> None:
    config = replace(SMOLLM2, num_heads=group * num_kv_heads, num_kv_heads=num_kv_heads)
    shards = [Shard.of(config, rank, size) for rank in range(size)]
    assert [head for shard in shards for head in shard.heads] == list(range(config.num_heads))
    for shard in shards:
        layout = shard.head_layout(config)
        read = [shard.kv_heads[local] for local in layout.kv_of_head]
        assert read == [head // group for head in shard.heads]
        assert set(read) == set(shard.kv_heads)  # no KV head is held that nobody reads


def test_smollm2_over_two_ranks() -> None:
    first, second = (Shard.of(SMOLLM2, rank, 2) for rank in range(2))
    assert (first.heads, second.heads) == (range(4), range(4, 9))
    assert (first.kv_heads, second.kv_heads) == (range(2), range(1, 3))
    assert (first.intermediate, second.intermediate) == (range(768), range(768, 1536))
    assert (first.vocab, second.vocab) == (range(24576), range(24576, 49152))


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_outside_the_group_is_refused(rank: int, size: int) -> None:
    with pytest.raises(EngineError, match=f"got rank {rank} of {size}"):
        Shard.of(SMOLLM2, rank, size)
