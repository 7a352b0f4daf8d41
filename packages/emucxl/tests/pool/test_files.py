"""Pools and their files: what is made, and what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from emucxl import errors
from emucxl.pool import Pool, named_pools, pool_path
from support.small_pools import EXTENT


def test_pool_is_private_and_fully_reserved(pool: Pool) -> None:
    facts = pool.path.stat()
    assert stat.S_IMODE(facts.st_mode) == 0o600
    assert facts.st_blocks * 512 >= facts.st_size == pool.stats().file_bytes
    assert (pool.stats().num_extents, pool.stats().free_extents) == (32, 32)


def test_name_is_a_file_in_shared_memory() -> None:
    name = f"test-{os.getpid()}"
    with Pool.create(name, EXTENT, extent_bytes=EXTENT) as pool:
        try:
            assert pool.path == pool_path(name) == Path(f"/dev/shm/emucxl-pool-{name}")
            assert name in named_pools()
        finally:
            pool.path.unlink()


def test_size_is_rounded_up_to_whole_extents(tmp_path: Path) -> None:
    with Pool.create(tmp_path / "pool", EXTENT + 1, extent_bytes=EXTENT) as pool:
        assert pool.stats().size_bytes == 2 * EXTENT


def test_existing_file_is_not_replaced(pool: Pool) -> None:
    before = pool.stats().uuid
    with pytest.raises(errors.NameTakenError, match="exists"):
        Pool.create(pool.path, EXTENT)
    with Pool.open(pool.path) as again:
        assert again.stats().uuid == before


@pytest.mark.parametrize(
    ("size_bytes", "extent_bytes"),
    [(0, EXTENT), (-1, EXTENT), (1 << 64, EXTENT), (EXTENT, 1000), (EXTENT, 1 << 30), (1 << 60, EXTENT)],
)
def test_bad_sizes_are_refused_and_leave_no_file(tmp_path: Path, size_bytes: int, extent_bytes: int) -> None:
    with pytest.raises(errors.ArgumentError):
        Pool.create(tmp_path / "pool", size_bytes, extent_bytes=extent_bytes)
    assert not list(tmp_path.iterdir())


def test_full_filesystem_is_told_and_leaves_no_file() -> None:
    name = f"test-{os.getpid()}"
    with pytest.raises(errors.SystemMemoryError, match="ask for less"):
        Pool.create(name, 1 << 45, extent_bytes=512 << 20)
    assert not list(Path("/dev/shm").glob(f"*{name}*"))


def test_missing_pool_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFoundError):
        Pool.open(tmp_path / "none")


def test_file_that_others_may_open_is_refused(pool: Pool) -> None:
    pool.path.chmod(0o640)
    with pytest.raises(errors.AccessDeniedError, match="0600"):
        Pool.open(pool.path)
    pool.path.chmod(0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_file_of_another_user_is_refused(pool: Pool) -> None:
    os.chown(pool.path, 12345, -1)
    with pytest.raises(errors.AccessDeniedError, match="another user"):
        Pool.open(pool.path)


def test_link_and_directory_are_no_pools(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pool.path)
    for path in (tmp_path / "link", tmp_path):
        with pytest.raises((errors.ArgumentError, errors.SystemCallError)):
            Pool.open(path)


def write_private(path: Path, content: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [b"", b"x", b"something else" * 1000], ids=["empty", "short", "other"])
def test_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(errors.ForeignError):
        Pool.open(write_private(tmp_path / "other", content))


@pytest.mark.parametrize("version", [1, 3])
def test_other_version_is_refused(pool: Pool, tmp_path: Path, version: int) -> None:
    content = bytearray(pool.path.read_bytes())
    content[8] = version
    with pytest.raises(errors.ForeignError, match=f"a pool of version {version}.*opens version 2: remove it"):
        Pool.open(write_private(tmp_path / "other", bytes(content)))


@pytest.mark.parametrize("place", [16, 48, 60, 100])
def test_damaged_header_is_refused(pool: Pool, tmp_path: Path, place: int) -> None:
    content = bytearray(pool.path.read_bytes())
    content[place] ^= 4
    with pytest.raises(errors.CorruptError, match="checksum"):
        Pool.open(write_private(tmp_path / "damaged", bytes(content)))


def test_truncated_file_is_refused(pool: Pool, tmp_path: Path) -> None:
    content = pool.path.read_bytes()
    with pytest.raises(errors.CorruptError, match="cut short"):
        Pool.open(write_private(tmp_path / "short", content[:-1]))


def test_ordinary_file_stands_in_for_a_device(tmp_path: Path) -> None:
    device = write_private(tmp_path / "device", b"\xff" * (64 * EXTENT))
    with Pool.format(device, extent_bytes=EXTENT, max_regions=8) as pool, pool.join("a") as host:
        free = pool.stats().free_extents
        assert 50 <= free < 64
        region = host.carve("all", free * EXTENT)
        assert region.read() == bytes(free * EXTENT)  # what lay there before is gone
    with pytest.raises(errors.NameTakenError):
        Pool.format(device, extent_bytes=EXTENT, max_regions=8)
    Pool.format(device, 2 * EXTENT, extent_bytes=EXTENT, max_regions=8, overwrite=True).close()


def test_too_small_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ArgumentError, match="room for 0 extents"):
        Pool.format(write_private(tmp_path / "device", bytes(4 * EXTENT)), extent_bytes=EXTENT)


def test_read_only_pool_shows_but_changes_nothing(pool: Pool) -> None:
    with Pool.open(pool.path, read_only=True) as looking, pool.join("a") as host:
        kept = host.carve("x", 10)
        assert [region.tag for region in looking.regions()] == ["x"]
        assert [each.name for each in looking.hosts()] == ["a"]
        looking.check()
        for change in (lambda: looking.join("b"), looking.reclaim, lambda: looking.poison(0, 1)):
            with pytest.raises(errors.AccessDeniedError):
                change()
        kept.close()
