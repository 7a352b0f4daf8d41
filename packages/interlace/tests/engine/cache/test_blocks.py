from __future__ import annotations

import random

import pytest

from interlace.engine.cache.block_table import BlockTable
from interlace.engine.cache.blocks import BlockManager
from interlace.errors import CacheTooSmall, EngineError


def test_a_table_says_how_many_blocks_it_lacks() -> None:
    table = BlockTable(64)
    table.extend([5, 3])
    assert [table.num_missing(tokens) for tokens in (33, 32, 49)] == [1, 0, 2]


def test_a_cleared_table_hands_over_its_blocks_in_order() -> None:
    table = BlockTable(64)
    table.extend([5])
    table.extend([3, 1])
    assert table.clear() == [5, 3, 1]
    assert table.num_missing(1) == 1


def test_a_freed_block_is_reused_first() -> None:
    manager = BlockManager(8)
    manager.allocate(3)
    manager.free([1])
    assert manager.allocate(1) == [1]


def test_too_much_is_refused_and_nothing_taken() -> None:
    manager = BlockManager(4)
    with pytest.raises(CacheTooSmall, match="5 KV blocks wanted, 4 free of 4"):
        manager.allocate(5)
    assert manager.num_free == 4


def test_a_cache_of_no_blocks_is_refused() -> None:
    with pytest.raises(CacheTooSmall, match="expected at least 1"):
        BlockManager(0)


def test_a_block_freed_twice_is_refused() -> None:
    manager = BlockManager(4)
    blocks = manager.allocate(2)
    manager.free(blocks)
    with pytest.raises(EngineError, match="twice"):
        manager.free(blocks)


def test_check_finds_leaks_and_double_owners() -> None:
    manager = BlockManager(4)
    blocks = manager.allocate(2)
    manager.check([blocks])
    for tables in ([], [blocks[:1]], [blocks, blocks], [[*blocks, 3]]):
        with pytest.raises(EngineError, match="leaked or owned twice"):
            manager.check(tables)


def test_a_published_block_is_found_when_no_table_has_it() -> None:
    manager = BlockManager(4)
    blocks = manager.allocate(2)
    assert [manager.publish(block, name) for block, name in zip(blocks, (b"a", b"b"), strict=True)] == blocks
    manager.free(blocks)
    assert (manager.num_free, manager.num_kept) == (4, 2)
    assert manager.find([b"a", b"b", b"c"]) == blocks
    assert manager.find([b"c", b"a"]) == []
    manager.share(blocks[:1])
    assert (manager.num_free, manager.num_kept) == (3, 1)
    manager.check([blocks[:1]])


def test_what_was_published_before_takes_the_place_of_what_holds_the_same() -> None:
    manager = BlockManager(4)
    first, second = manager.allocate(1), manager.allocate(1)
    assert manager.publish(first[0], b"a") == first[0]
    assert manager.publish(second[0], b"a") == first[0]
    manager.check([first, first])
    manager.free(first)
    manager.free(first)
    with pytest.raises(EngineError, match="twice"):
        manager.free(first)


def test_kept_blocks_are_taken_last_and_the_end_of_a_text_first() -> None:
    manager = BlockManager(3)
    text = manager.allocate(2)
    for block, name in zip(text, (b"a", b"b"), strict=True):
        manager.publish(block, name)
    manager.free(text)
    manager.allocate(2)  # the one that was free, and the end of the text
    assert manager.find([b"a", b"b"]) == text[:1]
    manager.forget()
    assert (manager.find([b"a"]), manager.num_free, manager.num_kept) == ([], 1, 0)


def test_random_use_keeps_the_invariants() -> None:
    rng = random.Random(0)
    manager, tables = BlockManager(20), []
    for _ in range(2000):
        if tables and rng.random() < 0.5:
            manager.free(tables.pop(rng.randrange(len(tables))))
        else:
            count = rng.randint(0, 5)
            if count <= manager.num_free:
                tables.append(manager.allocate(count))
        manager.check(tables)
