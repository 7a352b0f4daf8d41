"""The memory of a rank's tiers: taken to the byte, or refused in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from interlace.cache.kv_tier import KvTierSpec
from interlace.engine.cache import open_tier
from interlace.engine.cache.open_tier import free_node_bytes
from interlace.engine.cache.tier_memory import SlotMemory
from interlace.errors import EngineError

SLOT_BYTES = 24 * 1024


def opened(*tiers: str, rank: int = 0, num_ranks: int = 1, slot_bytes: int = SLOT_BYTES) -> SlotMemory:
    return SlotMemory([KvTierSpec.parse(text) for text in tiers], slot_bytes, rank, num_ranks)


def file_of(path: Path, size_bytes: int) -> Path:
    path.write_bytes(bytes(size_bytes))
    return path


@pytest.mark.parametrize(
    ("size", "num_slots"), [("24KiB", 1), ("47.9KiB", 1), ("48KiB", 2), ("49153.0KB", 2000), ("1MiB", 42)]
)
def test_a_tier_has_as_many_slots_as_fit_to_the_byte(size: str, num_slots: int) -> None:
    memory = opened(f"dram:{size}", f"shm:{size}")
    assert memory.num_slots == [num_slots, num_slots]
    memory.allocate([num_slots, num_slots])
    for buffer in memory.buffers:
        assert buffer.size_bytes == num_slots * SLOT_BYTES
        buffer.write(b"last", buffer.size_bytes - 4)
    context = memory.context
    memory.close()
    assert context.closed


def test_a_slot_of_any_size_fits() -> None:
    for slot_bytes in (1, 7, 4095, 4097, 100_000):
        memory = opened("dram:1MiB", slot_bytes=slot_bytes)
        (count,) = memory.num_slots
        assert count == (1 << 20) // slot_bytes
        memory.allocate([count])
        memory.close()


def test_fewer_slots_are_taken_where_another_rank_has_fewer() -> None:
    memory = opened("dram:1MiB")
    memory.allocate([3])
    assert memory.buffers[0].size_bytes == 3 * SLOT_BYTES
    memory.close()


def test_a_rank_without_heads_takes_nothing() -> None:
    memory = opened("dram:1MiB", "dax:/dev/no-such-device", slot_bytes=0)
    assert memory.num_slots == [None, None]
    memory.allocate([3, 3])
    assert not memory.buffers
    memory.close()


def test_a_tier_that_does_not_hold_a_block_is_refused() -> None:
    with pytest.raises(EngineError) as caught:
        opened("dram:1MiB", "cxl:23KiB")
    assert str(caught.value) == (
        "the tier 'cxl:23KiB' has 23,552 bytes for this rank: expected at least 24,576, which one block of the KV "
        "cache takes"
    )


@pytest.mark.parametrize("tier", ["dram:8000000TB", "dram:900000000000000TB", "shm:8000000TB"])
def test_a_tier_beyond_all_memory_is_refused(tier: str) -> None:
    with pytest.raises(EngineError, match=rf"the tier '{tier}' cannot work here: "):
        opened(tier)


def test_more_slots_than_a_tier_has_are_refused() -> None:
    memory = opened("dram:48KiB")
    with pytest.raises(EngineError, match=r"the tier 'dram:48KiB' has no room for 3 blocks: "):
        memory.allocate([3])
    memory.close()


@pytest.mark.parametrize("tier", ["numa:999", "numa:999:1MiB"])
def test_a_node_that_there_is_not_is_refused(tier: str) -> None:
    with pytest.raises(EngineError, match=f"the tier '{tier}' cannot work here: .*999"):
        opened(tier)


@pytest.mark.parametrize("text", ["", "Node 0 MemFree: many kB", "Node 0 MemTotal: 9 kB", "Node 0 MemFree:"])
def test_a_node_that_does_not_tell_its_free_memory_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(open_tier, "Path", lambda _: tmp_path / "meminfo")
    with pytest.raises(
        EngineError, match=r"NUMA node 0 does not tell what is free of it; name a node .*a size"
    ):
        free_node_bytes(0, "numa:0")


def test_ranks_share_what_is_free_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("Node 0 MemTotal: 9999 kB\nNode 0 MemFree:  1000 kB\n")
    monkeypatch.setattr(open_tier, "Path", lambda _: tmp_path / "meminfo")
    assert free_node_bytes(0, "numa:0") == 800 * 1024


def test_an_ordinary_file_stands_in_for_a_device(tmp_path: Path) -> None:
    path = file_of(tmp_path / "device", 5 * SLOT_BYTES + 100)
    memory = opened(f"dax:{path}")
    assert memory.num_slots == [5]
    memory.allocate([5])
    memory.buffers[0].write(b"first")
    memory.close()
    assert path.read_bytes().count(b"first") == 1
    assert path.stat().st_size == 5 * SLOT_BYTES + 100


def test_part_of_a_device_may_be_taken_and_no_more_than_it_has(tmp_path: Path) -> None:
    path = file_of(tmp_path / "device", 4 * SLOT_BYTES)
    memory = opened(f"dax:{path}:48KiB")
    assert memory.num_slots == [2]
    memory.close()
    with pytest.raises(EngineError, match="cannot work here"):
        opened(f"dax:{path}:1MiB")


def test_each_rank_has_a_device_of_its_own(tmp_path: Path) -> None:
    for rank, num_blocks in enumerate((2, 3)):
        file_of(tmp_path / f"device{rank}", num_blocks * SLOT_BYTES)
    ranks = [opened(f"dax:{tmp_path}/device{{rank}}", rank=rank, num_ranks=2) for rank in range(2)]
    assert [memory.num_slots for memory in ranks] == [[2], [3]]
    for memory in ranks:
        memory.close()
    with pytest.raises(EngineError, match="for 2 ranks: expected a device for each"):
        opened(f"dax:{tmp_path}/device0", num_ranks=2)


@pytest.mark.parametrize("kind", ["missing", "folder", "empty"])
def test_a_device_that_does_not_work_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "device"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        file_of(path, 0)
    with pytest.raises(EngineError, match=f"the tier 'dax:{path}' (cannot work here|has 0 bytes)"):
        opened(f"dax:{path}")


def test_a_tier_after_one_that_does_not_work_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(EngineError):
            opened("shm:1MiB", f"dax:{tmp_path}/none")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_timing_beyond_this_machine_is_told_of_and_left_out() -> None:
    memory = opened("cxl:1MiB@90000GB/s,1us", "cxl2:1MiB@80000GB/s,1us")
    assert len(memory.notices) == 2
    assert all("has this machine's own bandwidth" in notice for notice in memory.notices)
    assert [tier.timing.read_latency_ns for tier in memory.context.tiers.values() if tier.timing] == [
        1000,
        1000,
    ]
    memory.close()
