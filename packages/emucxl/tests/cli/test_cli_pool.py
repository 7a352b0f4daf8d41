from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from emucxl.cli.main import app
from emucxl.pool import Pool

EXTENT = 4096


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["pool", *map(str, arguments)])


def answer(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    created = answer("create", tmp_path / "pool", "64K", "--extent", "4K", "--max-regions", 8)
    assert (created["num_extents"], created["extent_bytes"]) == (16, EXTENT)
    yield tmp_path / "pool"
    assert run("check", tmp_path / "pool").stdout.endswith("are consistent\n")


def test_named_pool_is_listed() -> None:
    name = f"test-cli-{os.getpid()}"
    made = run("create", name, "1M", "--extent", "64K")
    try:
        assert made.stdout == f"/dev/shm/emucxl-pool-{name}: 16 extents of 64 KiB\n"
        (found,) = (each for each in answer("list")["pools"] if each["name"] == name)
        assert (found["size_bytes"], found["free_extents"]) == (1 << 20, 16)
        assert name in run("list").stdout
    finally:
        Path(f"/dev/shm/emucxl-pool-{name}").unlink()


def test_pool_that_cannot_be_opened_is_listed_with_the_reason() -> None:
    name = f"test-cli-{os.getpid()}"
    path = Path(f"/dev/shm/emucxl-pool-{name}")
    path.touch(mode=0o600)
    try:
        (found,) = (each for each in answer("list")["pools"] if each["name"] == name)
        assert "no pool" in found["error"]
        assert "no pool" in run("list").stdout
    finally:
        path.unlink()


def test_show_tells_hosts_and_regions(path: Path) -> None:
    with Pool.open(path) as pool, pool.join("trainer", quota_bytes=8 * EXTENT) as host:
        region = host.carve("weights", 3 * EXTENT, persistent=True)
        shown = answer("show", path)
        assert shown["hosts"][0]["name"] == "trainer"
        assert shown["hosts"][0]["state"] == "active"
        assert shown["regions"][0]["tag"] == "weights"
        assert shown["regions"][0]["sharing"] == "write"
        text = " ".join(run("show", path).stdout.split())
        assert "64 KiB in 16 extents of 4 KiB; 13 free, 3 held, 0 retired" in text
        for word in ("trainer", "weights", "12 KiB", "32 KiB", str(os.getpid())):
            assert word in text
        region.close()


def test_release_frees_a_region_or_waits_for_its_holders(path: Path) -> None:
    with Pool.open(path) as pool, pool.join("a") as host:
        host.carve("left", 1, persistent=True).close()
        held = host.carve("held", 1, persistent=True)
        assert run("release", path, "left").stdout == "left is free\n"
        assert run("release", path, "held").stdout == "held is freed once the hosts in slots 0w let go\n"
        held.close()
        assert pool.regions() == []
    missing = run("release", path, "none")
    assert missing.exit_code == 1


DIES = """
import os, signal, sys
from emucxl.pool import Pool
host = Pool.open(sys.argv[1]).join("gone")
region = host.carve("x", 8192)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_reclaim_tells_what_it_freed(path: Path) -> None:
    subprocess.run([sys.executable, "-c", DIES, str(path)], check=False, timeout=60)
    assert answer("show", path)["hosts"][0]["name"] == "gone"
    assert run("reclaim", path).stdout == "fenced 1 hosts, freed 1 hosts, 1 regions and 2 extents\n"
    assert answer("reclaim", path, "--kill") == {
        "fenced_hosts": 0,
        "freed_hosts": 0,
        "freed_regions": 0,
        "freed_extents": 0,
        "quarantined_hosts": 0,
    }


def test_poison_is_shown(path: Path) -> None:
    assert run("poison", path, "4K", 1).stdout == "0 held extents have bad lines, 1 are retired\n"
    with Pool.open(path) as pool, pool.join("a") as host:
        region = host.carve("x", 2 * EXTENT)
        told = run("poison", path, 100, 10, "--region", "x").stdout
        assert told == "1 held extents have bad lines, 1 are retired\n"
        assert [each["size_bytes"] for each in answer("show", path)["poison"]] == [64, 64]
        assert "bad: 64 bytes at 4096" in run("show", path).stdout
        region.close()


def test_errors_are_one_line(path: Path) -> None:
    for arguments in (("create", path, "1M"), ("show", path.parent / "none"), ("check", __file__)):
        done = run(*arguments)
        assert done.exit_code == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("size", ["", "x", "-1", "1.5M", "5X"])
def test_bad_size_is_wrong_usage(tmp_path: Path, size: str) -> None:
    assert run("create", tmp_path / "pool", "--", size).exit_code == 2
    assert not (tmp_path / "pool").exists()


def test_existing_file_can_be_formatted(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.touch(mode=0o600)
    device.write_bytes(bytes(1 << 20))
    assert answer("create", device, 0, "--format", "--extent", "4K")["num_extents"] > 100
    assert run("create", device, 0, "--format", "--extent", "4K").exit_code == 1
    assert run("create", device, 0, "--format", "--overwrite", "--extent", "4K").exit_code == 0
