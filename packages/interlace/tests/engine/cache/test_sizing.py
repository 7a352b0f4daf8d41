"""A rank sizes its cache by what it is told, and else by what is granted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from emucxl import resources
from interlace.engine.cache.layout import CacheLayout
from interlace.engine.cache.sizing import affordable_blocks, notices_of
from interlace.engine.config import EngineConfig
from interlace.errors import CacheTooSmall, EngineError
from tokenweave.kernels import HeadLayout

LAYOUT = CacheLayout(2, HeadLayout(2, (0, 1), 8), torch.float32)
BLOCK_BYTES = (
    2 * 2 * 2 * 16 * 8 * 4
)  # layers, keys and values, heads, tokens, numbers of a head, bytes of one


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`available(700)`: bytes that the system will say are free."""
    return lambda count: monkeypatch.setattr(resources, "available_bytes", lambda: count)


def blocks(ranks_on_host: int = 1, layout: CacheLayout = LAYOUT, **options: Any) -> int:
    return affordable_blocks(EngineConfig("model", **options), 4096, layout, ranks_on_host)


def test_a_block_has_keys_and_values_of_all_layers() -> None:
    assert LAYOUT.block_bytes == BLOCK_BYTES


def test_blocks_that_are_asked_for_are_given() -> None:
    assert blocks(num_kv_blocks=7) == 7


def test_gigabytes_are_filled_with_whole_blocks() -> None:
    assert blocks(kv_cache_gb=3.9 * BLOCK_BYTES / 1e9) == 3


@pytest.mark.parametrize(("ranks", "expected"), [(1, 40), (2, 20), (3, 13)])
def test_ranks_of_a_host_share_two_fifths_of_its_free_memory(
    available: Any, ranks: int, expected: int
) -> None:
    available(100 * BLOCK_BYTES)
    assert blocks(ranks) == expected


def test_no_more_blocks_are_taken_than_all_sequences_can_fill(available: Any) -> None:
    available(2**60)
    assert blocks(max_num_seqs=3) == 3 * 4096 // 16


def test_gigabytes_that_no_sequence_can_fill_are_told() -> None:
    def notices(**options: Any) -> tuple[str, ...]:
        return notices_of(EngineConfig("model", **options), 4096, LAYOUT)

    most_gb = 3 * 256 * BLOCK_BYTES / 1e9
    assert notices() == notices(num_kv_blocks=7) == notices(max_num_seqs=3, kv_cache_gb=most_gb) == ()
    (notice,) = notices(max_num_seqs=3, kv_cache_gb=2.5)
    assert "got kv_cache_gb=2.5; a rank takes 0.00 of it: max_num_seqs=3 sequences of 4096 tokens" in notice


def test_a_rank_without_heads_takes_part_in_any_cache(available: Any) -> None:
    available(0)
    assert blocks(layout=CacheLayout(2, HeadLayout(0, (), 8), torch.float32), max_num_seqs=1) == 256


def test_memory_without_room_for_one_block_is_refused() -> None:
    with pytest.raises(CacheTooSmall, match=rf"one block of 16 tokens takes {BLOCK_BYTES:,} bytes"):
        blocks(kv_cache_gb=0.9 * BLOCK_BYTES / 1e9)


def test_memory_that_nobody_tells_of_is_an_error_that_says_what_to_set(available: Any) -> None:
    available(None)
    with pytest.raises(EngineError, match="set kv_cache_gb or num_kv_blocks"):
        blocks()


GPU = torch.device("cuda", 1)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the second has room for ten blocks."""
    told = {GPU: (10 * BLOCK_BYTES, 99 * BLOCK_BYTES)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", told.__getitem__)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("ranks_on_host", "blocks_of_a_pass", "expected"), [(1, 0, 9), (2, 0, 9), (4, 0, 4), (2, 6, 3)]
)
@pytest.mark.usefixtures("two_gpus")
def test_a_rank_takes_nine_tenths_of_what_a_pass_leaves_free_on_its_device(
    ranks_on_host: int, blocks_of_a_pass: int, expected: int
) -> None:
    """Neither the memory of the host counts nor the ranks on the other GPU."""
    pass_bytes = blocks_of_a_pass * BLOCK_BYTES
    assert affordable_blocks(EngineConfig("model"), 4096, LAYOUT, ranks_on_host, GPU, pass_bytes) == expected


@pytest.mark.usefixtures("two_gpus")
def test_a_size_that_is_set_counts_on_a_device_too() -> None:
    config = EngineConfig("model", kv_cache_gb=3.9 * BLOCK_BYTES / 1e9)
    assert affordable_blocks(config, 4096, LAYOUT, 2, GPU) == 3


@pytest.mark.usefixtures("two_gpus")
def test_a_device_that_a_pass_fills_is_refused_with_advice() -> None:
    with pytest.raises(
        CacheTooSmall, match=r"beside [\d,]+ of a pass; .* lower max_num_batched_tokens, or raise tp"
    ):
        affordable_blocks(EngineConfig("model"), 4096, LAYOUT, 1, GPU, 10 * BLOCK_BYTES)


def test_a_device_that_does_not_tell_its_memory_has_to_be_told() -> None:
    with pytest.raises(EngineError, match="how much memory meta has: set kv_cache_gb or num_kv_blocks"):
        affordable_blocks(EngineConfig("model"), 4096, LAYOUT, 1, torch.device("meta"))
