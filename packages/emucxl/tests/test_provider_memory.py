"""Tiers of the system's memory: refused with figures, never killed, and on the node that was asked for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emucxl import abi, errors
from support.c_programs import compile_program, compiler, run_program
from support.cgroups import real_cgroup
from support.native_context import MIB, NativeContext, provider_unavailable
from support.provider_cases import (
    CAPACITY,
    first_node,
)

ROOT = Path(__file__).parents[3]

# ---- memory of the system ----------------------------------------------------------------------------------------

MEMORY = [
    pytest.param({"provider": abi.PROVIDER_ANON}, id="anon"),
    pytest.param({"provider": abi.PROVIDER_SHM}, id="shm"),
    pytest.param({"provider": abi.PROVIDER_NUMA}, id="numa"),
]


def figure(name: str) -> int:
    """Returns a figure of /proc/meminfo, in bytes."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.fixture(params=MEMORY)
def memory(request: pytest.FixtureRequest) -> dict[str, Any]:
    fields = dict(request.param)
    if (reason := provider_unavailable(fields["provider"])) is not None:
        pytest.skip(reason)
    if fields["provider"] == abi.PROVIDER_NUMA:
        fields["numa_node"] = first_node()
    return fields


def test_more_than_the_system_has_is_refused_with_figures(memory: dict[str, Any]) -> None:
    with NativeContext() as context:
        with pytest.raises(errors.SystemMemoryError, match=r"got a capacity of \d+ bytes; expected at most"):
            context.add_tier("huge", figure("MemTotal") + (1 << 30), **memory)
        assert context.library.emx_tier_count(context.handle) == 0


PROMISES_PROGRAM = """
import json, os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from emucxl import errors
from support.native_context import MIB, NativeContext
fields = json.loads(sys.argv[2])
with NativeContext() as first, NativeContext() as second:
    first.add_tier("first", 250 * MIB, **fields)
    try:
        second.add_tier("second", 250 * MIB)
        sys.exit("500 MiB in a group of 400 were promised")
    except errors.SystemMemoryError as error:
        assert "promised to other tiers of this process" in str(error), error
    first.close()
    second.add_tier("second", 250 * MIB)
print("promised once")
"""


def test_tiers_are_not_promised_the_same_memory_twice(memory: dict[str, Any]) -> None:
    """In a group of its own, from whose memory nobody else takes."""
    done = run_in_group(PROMISES_PROGRAM, 400 * MIB, json.dumps(memory))
    assert (done.returncode, done.stdout) == (0, "promised once\n"), done.stderr


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_only_pages_that_were_reached_are_asked_about(tmp_path: Path) -> None:
    assert run_program(compile_program(Path("resident_pages.c"), tmp_path)).endswith(" bytes\n")


def run_in_group(program: str, limit_bytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that joins the memory cgroup which is its first argument."""
    limit = str(limit_bytes)
    with real_cgroup("memory", {"memory.limit_in_bytes": limit}, {"memory.max": limit}) as group:
        if group is None:
            pytest.skip("this process may not make a memory cgroup")
        return subprocess.run(
            [sys.executable, "-c", program, str(group), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


GROUP_PROGRAM = """
import mmap, os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from emucxl import abi, errors, native
from support.native_context import MIB, NativeContext
context = NativeContext()
try:
    context.add_tier("too large", 600 * MIB)
    sys.exit("600 MiB in a group of 512 were not refused")
except errors.SystemMemoryError:
    pass
for number, fields in enumerate(({"provider": abi.PROVIDER_ANON}, {"provider": abi.PROVIDER_SHM})):
    context = NativeContext()
    context.add_tier("fits", 300 * MIB, **fields)
    hog = mmap.mmap(-1, 250 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, 250 * MIB, 4096):
        hog[offset] = 1
    blocks = 0
    try:
        while True:
            context.memset(context.alloc(0, 4 * MIB), 0, 1, 4 * MIB)
            blocks += 1
    except errors.SystemMemoryError as error:
        assert "something else took what there was" in str(error), error
    assert 10 <= blocks < 70, blocks
    context.check()
    context.close()
    hog.close()
print("refused, not killed")
"""


def test_growth_into_memory_that_is_gone_is_refused_and_not_killed() -> None:
    done = run_in_group(GROUP_PROGRAM, 512 * MIB)
    assert (done.returncode, done.stdout) == (0, "refused, not killed\n"), done.stderr


# ---- numa --------------------------------------------------------------------------------------------------------


def pages_by_node(base: int) -> dict[int, int]:
    """Returns the kernel's count of pages by node for the mapping at `base`, from another source than the library's."""
    pages: dict[int, int] = {}
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        start = int(line.split()[0], 16)
        if base <= start < base + CAPACITY:
            for node, count in re.findall(r" N(\d+)=(\d+)", line):
                pages[int(node)] = pages.get(int(node), 0) + int(count)
    return pages


def test_pages_are_on_the_node_before_they_are_touched(memory: dict[str, Any]) -> None:
    if memory["provider"] != abi.PROVIDER_NUMA:
        return
    with NativeContext() as context:
        tier = context.add_tier("numa", CAPACITY, **memory)
        info = context.info(tier)
        assert info.numa_node == memory["numa_node"]
        context.alloc(tier, 4 * MIB)
        pages = pages_by_node(info.base)
        assert set(pages) == {info.numa_node}
        assert sum(pages.values()) >= 2  # huge ones, or 1,024 small ones


@pytest.mark.parametrize("node", [-1, 900, 5000])
def test_a_node_that_is_not_there_is_unavailable(node: int) -> None:
    with NativeContext() as context:
        pattern = rf"got NUMA node {node}; expected one that has memory: \d" if available_numa() else "numa"
        with pytest.raises(errors.UnavailableError, match=pattern):
            context.add_tier("numa", CAPACITY, provider=abi.PROVIDER_NUMA, numa_node=node)


def available_numa() -> bool:
    return provider_unavailable(abi.PROVIDER_NUMA) is None
