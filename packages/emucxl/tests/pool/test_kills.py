"""Hosts that die at every step of every operation, and pools whose tables are damaged: the C programs do the work."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.c_programs import compile_program, compiler, run_program

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")


@pytest.fixture(scope="module")
def kill_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(
        Path("kill_pool"), tmp_path_factory.mktemp("kills"), "", core_flags="-DEMX_POOL_STEPS"
    )


@pytest.fixture(scope="module")
def fuzz_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(Path("fuzz_pool.c"), tmp_path_factory.mktemp("fuzz"))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """In shared memory where it is there: the harness writes a pool per kill."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path / "pool"
        return
    place = memory / f"emucxl-test-{tmp_path.parent.name}-{tmp_path.name}"
    yield place
    for left in memory.glob(f"{place.name}*"):
        left.unlink()


def test_host_killed_at_any_step_leaves_nothing(kill_pool: Path, path: Path) -> None:
    said = run_program(kill_pool, path, "steps")
    assert int(said.splitlines()[-1].split()[0]) > 400


def test_host_killed_while_it_reclaims_leaves_nothing(kill_pool: Path, path: Path) -> None:
    said = run_program(kill_pool, path, "double", 37)
    assert int(said.split()[0]) > 500


def test_host_stopped_at_any_step_goes_on_without_harm(kill_pool: Path, path: Path) -> None:
    """Meanwhile another one opens, grows or carves what it was at work on, or cleans up. Most of it is waiting."""

    def run(variant: int) -> int:
        return int(run_program(kill_pool, f"{path}-{variant}", "stop", variant).split()[0])

    with ThreadPoolExecutor(3) as threads:
        assert min(threads.map(run, range(3))) > 200


def test_hosts_killed_at_random_instants_corrupt_nobody(kill_pool: Path, path: Path) -> None:
    assert run_program(kill_pool, path, "random", 300, 1) == "300 kills\n"


@pytest.mark.slow
def test_thousands_of_pairs_of_kills_leave_nothing(kill_pool: Path, path: Path) -> None:
    said = run_program(kill_pool, path, "double", 2, timeout_s=280)
    assert int(said.split()[0]) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_thousands_of_hosts_killed_at_random_instants_corrupt_nobody(
    kill_pool: Path, path: Path, seed: int
) -> None:
    assert run_program(kill_pool, path, "random", 5000, seed, timeout_s=280) == "5000 kills\n"


def test_threads_share_a_host_until_it_is_fenced(tmp_path: Path, path: Path) -> None:
    run_program(compile_program(Path("threads_pool.c"), tmp_path, "thread"), path, 20)


def fuzz(program: Path, path: Path, rounds: int, seeds: range) -> tuple[int, int]:
    """How many damaged pools were refused, and how many could be used. Most of it is waiting, so seeds run at once."""

    def run(seed: int) -> tuple[int, int]:
        said = run_program(program, f"{path}-{seed}", rounds, seed, timeout_s=280).split()
        return int(said[0]), int(said[2])

    with ThreadPoolExecutor(len(seeds)) as threads:
        counts = list(threads.map(run, seeds))
    return sum(count[0] for count in counts), sum(count[1] for count in counts)


def test_damaged_pool_gives_errors_and_never_crashes(fuzz_pool: Path, path: Path) -> None:
    refused, used = fuzz(fuzz_pool, path, 40, range(8))
    assert refused > 20
    assert used > 20


@pytest.mark.slow
def test_thousands_of_damaged_pools_give_errors_and_never_crash(fuzz_pool: Path, path: Path) -> None:
    refused, used = fuzz(fuzz_pool, path, 250, range(100, 116))
    assert refused + used == 4_000
