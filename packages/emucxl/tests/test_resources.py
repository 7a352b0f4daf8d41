"""The limits of a container replace those of the machine: in trees of files, and in real control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emucxl import errors, native, resources
from emucxl.resources import Resources
from support.cgroups import GB, FakeSystem, real_cgroup

MEMORY_1, CPU_1, BOTH_2 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"
NO_LIMIT_1 = 9223372036854771712  # how v1 writes it
AVAILABLE = 40 * GB // 1024 * 1024


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return FakeSystem(tmp_path)


def read(system: FakeSystem) -> Resources:
    return resources.read(str(system.root))


def test_a_machine_without_groups_has_its_own_figures(system: FakeSystem) -> None:
    found = read(system)
    assert (found.memory_bytes, found.memory_limit_bytes) == (64 * GB // 1024 * 1024, None)
    assert found.available_bytes == AVAILABLE
    assert found.cpu_quota_cores is None
    assert found.num_threads == found.num_cores == len(os.sched_getaffinity(0))


def test_memory_of_version_2_is_what_the_limit_leaves(system: FakeSystem) -> None:
    system.mount_v2("/")
    system.group(BOTH_2, {"memory.max": GB, "memory.current": GB // 4, "memory.high": "max"})
    found = read(system)
    assert (found.memory_limit_bytes, found.available_bytes) == (GB, 3 * GB // 4)
    assert found.memory_group == BOTH_2
    assert found.usable_memory_bytes == GB


def test_memory_of_version_1_is_what_the_limit_leaves(system: FakeSystem) -> None:
    system.mount_v1("memory", "/docker/abc", MEMORY_1)
    system.group(f"{MEMORY_1}/docker/abc", {"memory.limit_in_bytes": GB, "memory.usage_in_bytes": GB // 4})
    assert read(system).available_bytes == 3 * GB // 4
    assert read(system).memory_group == f"{MEMORY_1}/docker/abc"


@pytest.mark.parametrize("version", [1, 2])
def test_page_cache_counts_as_available(system: FakeSystem, version: int) -> None:
    if version == 1:
        system.mount_v1("memory", "/", MEMORY_1)
        stat = f"inactive_file 1\ntotal_inactive_file {GB // 8}\ntotal_active_file {GB // 8}"
        files = {"memory.limit_in_bytes": GB, "memory.usage_in_bytes": GB // 2, "memory.stat": stat}
        system.group(MEMORY_1, files)
    else:
        system.mount_v2("/")
        stat = f"anon 7\ninactive_file {GB // 8}\nactive_file {GB // 16}\nslab_reclaimable {GB // 16}"
        system.group(BOTH_2, {"memory.max": GB, "memory.current": GB // 2, "memory.stat": stat})
    assert read(system).available_bytes == 3 * GB // 4


def test_memory_high_limits_as_the_maximum_does(system: FakeSystem) -> None:
    system.mount_v2("/")
    system.group(BOTH_2, {"memory.max": 4 * GB, "memory.high": GB, "memory.current": 0})
    assert read(system).memory_limit_bytes == GB


def test_the_least_over_all_levels_holds(system: FakeSystem) -> None:
    system.mount_v2("/pods/one/box")
    system.group(f"{BOTH_2}/pods", {"memory.max": 8 * GB, "memory.current": 7 * GB, "cpu.max": "max 100000"})
    system.group(
        f"{BOTH_2}/pods/one", {"memory.max": "max", "memory.current": GB, "cpu.max": "150000 100000"}
    )
    system.group(
        f"{BOTH_2}/pods/one/box", {"memory.max": 4 * GB, "memory.current": GB, "cpu.max": "80000 20000"}
    )
    found = read(system)
    assert found.available_bytes == GB  # the neighbours of the pod took the rest
    assert (found.memory_limit_bytes, found.memory_group) == (4 * GB, f"{BOTH_2}/pods/one/box")
    assert (found.cpu_quota_cores, found.cpu_group) == (1.5, f"{BOTH_2}/pods/one")


def test_a_group_above_its_limit_leaves_nothing(system: FakeSystem) -> None:
    system.mount_v2("/")
    system.group(BOTH_2, {"memory.max": GB, "memory.current": 2 * GB})
    assert read(system).available_bytes == 0


@pytest.mark.parametrize("controllers", ["cpu,cpuacct", "cpu", "cpuacct,cpu"])
def test_the_quota_of_version_1(system: FakeSystem, controllers: str) -> None:
    system.mount_v1("cpuset", "/elsewhere", "/sys/fs/cgroup/cpuset")
    system.mount_v1(controllers, "/box", CPU_1)
    system.group(CPU_1, {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100_000})
    system.group(f"{CPU_1}/box", {"cpu.cfs_quota_us": 250_000, "cpu.cfs_period_us": 100_000})
    assert read(system).cpu_quota_cores == 2.5


def test_no_limit_is_none_in_either_version(system: FakeSystem) -> None:
    system.mount_v1("memory", "/a", MEMORY_1)
    system.mount_v1("cpu,cpuacct", "/a", CPU_1)
    system.mount_v2("/", "/sys/fs/cgroup/unified")
    system.group(f"{MEMORY_1}/a", {"memory.limit_in_bytes": NO_LIMIT_1, "memory.usage_in_bytes": 99 * GB})
    system.group(f"{CPU_1}/a", {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100_000})
    system.group("/sys/fs/cgroup/unified", {"memory.max": "max", "cpu.max": "max 100000"})
    found = read(system)
    assert (found.memory_limit_bytes, found.cpu_quota_cores) == (None, None)
    assert found.available_bytes == AVAILABLE


def test_both_versions_at_once_count(system: FakeSystem) -> None:
    system.mount_v1("memory", "/a", MEMORY_1)
    system.mount_v2("/a", "/sys/fs/cgroup/unified")
    system.group(f"{MEMORY_1}/a", {"memory.limit_in_bytes": 2 * GB, "memory.usage_in_bytes": 0})
    system.group("/sys/fs/cgroup/unified/a", {"cpu.max": "300000 100000"})
    found = read(system)
    assert (found.memory_limit_bytes, found.cpu_quota_cores) == (2 * GB, 3.0)


def test_a_container_whose_mount_begins_at_its_own_group(system: FakeSystem) -> None:
    system.mount_v1("memory", "/docker/abc/worker", MEMORY_1, top="/docker/abc")
    system.group(MEMORY_1, {"memory.limit_in_bytes": 3 * GB, "memory.usage_in_bytes": 0})
    system.group(f"{MEMORY_1}/worker", {"memory.limit_in_bytes": GB, "memory.usage_in_bytes": 0})
    assert read(system).memory_group == f"{MEMORY_1}/worker"


@pytest.mark.parametrize(
    ("group", "top"),
    [("/", "/../.."), ("/../elsewhere", "/"), ("/docker/abc", "/docker/other"), ("/ab", "/a")],
)
def test_names_that_do_not_meet_still_find_what_is_mounted(system: FakeSystem, group: str, top: str) -> None:
    system.mount_v2(group, top=top)
    system.group(BOTH_2, {"memory.max": GB, "memory.current": 0, "cpu.max": "100000 100000"})
    found = read(system)
    assert (found.memory_limit_bytes, found.cpu_quota_cores) == (GB, 1.0)


def test_another_groups_mount_is_not_mistaken_for_ones_own(system: FakeSystem) -> None:
    system.mount_elsewhere("77 1 0:9 /box /mnt/box rw - cgroup2 cgroup2 rw")
    system.group("/mnt/box", {"memory.max": GB, "memory.current": 0})
    system.mount_v2("/mine")
    system.group(f"{BOTH_2}/mine", {"memory.max": 2 * GB, "memory.current": 0})
    assert read(system).memory_limit_bytes == 2 * GB


def test_limits_above_what_is_mounted_count_in_version_1(system: FakeSystem) -> None:
    system.mount_v1("memory", "/", MEMORY_1)
    stat = f"cache 0\nhierarchical_memory_limit {GB}"
    files = {"memory.limit_in_bytes": NO_LIMIT_1, "memory.usage_in_bytes": 0, "memory.stat": stat}
    system.group(MEMORY_1, files)
    assert read(system).memory_limit_bytes == GB


def test_mounts_and_names_with_blanks_and_long_lists_of_mounts(system: FakeSystem) -> None:
    for number in range(500):
        system._mounts.append(f"{number} 1 0:1 / /very/long/mount/point/{number} rw - overlay overlay rw")
    system.mount_v2("/a slice/b", "/sys/fs/c groups")
    system.group("/sys/fs/c groups/a slice", {"memory.max": GB, "memory.current": 0})
    assert read(system).memory_limit_bytes == GB


@pytest.mark.parametrize("damage", ["", "nonsense", "-1", "100000", "0 0", "max"])
def test_limits_that_say_nothing_limit_nothing(system: FakeSystem, damage: str) -> None:
    system.mount_v2("/")
    system.group(BOTH_2, {"cpu.max": damage, "memory.max": "max" if damage[:1].isdigit() else damage})
    assert (read(system).memory_limit_bytes, read(system).cpu_quota_cores) == (None, None)


@pytest.mark.parametrize(
    "damage", ["", "\n\n:::\n0:", "nonsense", "1 2 3 - cgroup2", " - cgroup", "0:memory"]
)
def test_damaged_lists_do_not_hide_the_lines_that_are_whole(system: FakeSystem, damage: str) -> None:
    system.mount_v2("/a")
    system.group(f"{BOTH_2}/a", {"memory.max": GB, "memory.current": 0})
    for name in ("mountinfo", "cgroup"):
        whole = (system.root / "proc/self" / name).read_text()
        system.write(f"proc/self/{name}", f"{damage}\n{whole}")
    assert read(system).memory_limit_bytes == GB


def test_without_proc_the_usual_places_are_looked_at(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000000000\n")
    (group / "memory.current").write_text("0\n")
    found = resources.read(str(tmp_path))
    assert (found.memory_limit_bytes, found.available_bytes) == (GB, GB)
    assert found.memory_bytes is None


@pytest.mark.parametrize(
    ("quota", "cores", "threads"),
    [
        (0.1, 8, 1),
        (0.99, 8, 1),
        (1.0, 8, 1),
        (1.5, 8, 1),
        (2.0, 8, 2),
        (2.9, 8, 2),
        (64.0, 8, 8),
        (None, 8, 8),
    ],
)
def test_threads_are_the_whole_cores_of_the_quota(quota: float | None, cores: int, threads: int) -> None:
    assert Resources(cores, quota, None, None, None, "", "").num_threads == threads


def test_a_root_that_is_too_long_is_refused() -> None:
    with pytest.raises(errors.ArgumentError, match="root"):
        resources.read("/" + "x" * 5000)


def test_without_the_native_core_only_the_cores_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise errors.UnavailableError("it was not built")

    monkeypatch.setattr(native, "load", missing)
    found = resources.read()
    assert (found.available_bytes, found.cpu_quota_cores) == (None, None)
    assert found.num_threads == len(os.sched_getaffinity(0))


PROGRAM = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from emucxl import resources
found = resources.read()
print(found.num_threads, found.num_cores, found.memory_limit_bytes, found.cpu_quota_cores)
print(found.memory_group or found.cpu_group)
print(found.available_bytes)
"""


def run_in(group: Path | None) -> list[str]:
    if group is None:
        pytest.skip("this process may not make such a cgroup")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(group)], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


def test_a_real_memory_group_is_found() -> None:
    with real_cgroup(
        "memory", {"memory.limit_in_bytes": str(1 << 30)}, {"memory.max": str(1 << 30)}
    ) as group:
        figures, found, available = run_in(group)
        assert figures.split()[2] == str(1 << 30)
        assert found == str(group)
        assert 0 < int(available) < 1 << 30


def test_a_real_quota_is_found() -> None:
    files = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}
    with real_cgroup("cpu", files, {"cpu.max": "150000 100000"}) as group:
        figures, found, _ = run_in(group)
        assert (figures.split()[0], figures.split()[3]) == ("1", "1.5")
        assert found == str(group)


def test_a_real_cpuset_is_seen_in_the_affinity() -> None:
    core = str(min(os.sched_getaffinity(0)))
    with real_cgroup("cpuset", {"cpuset.cpus": core, "cpuset.mems": "0"}, {"cpuset.cpus": core}) as group:
        assert run_in(group)[0].split()[:2] == ["1", "1"]
