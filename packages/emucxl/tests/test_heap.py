"""The heap of a tier, from C: facts one by one, and the fuzzer, under the sanitizers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.c_programs import PROGRAMS, compile_program, compiler, run_program

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")

FACTS = re.findall(r"FACT\((\w+)\),", (PROGRAMS / "heap_facts" / "main.c").read_text())
MIB = 1 << 20
# It takes a TiB of addresses in a row; the thread sanitizer leaves fewer than two, at places that differ each time.
TOO_LARGE_FOR_THE_THREAD_SANITIZER = "a_terabyte_costs_what_is_used"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heap")


def fuzz(programs: Path, sanitize: str, **options: int) -> str:
    program = compile_program(Path("fuzz_heap.c"), programs, sanitize)
    return run_program(program, *(f"{name}={value}" for name, value in options.items()))


@pytest.mark.parametrize("fact", FACTS)
def test_fact(programs: Path, fact: str) -> None:
    run_program(compile_program(Path("heap_facts"), programs), fact)


@pytest.mark.slow
@pytest.mark.parametrize("fact", [fact for fact in FACTS if fact != TOO_LARGE_FOR_THE_THREAD_SANITIZER])
def test_fact_without_data_races(programs: Path, fact: str) -> None:
    run_program(compile_program(Path("heap_facts"), programs, "thread"), fact)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"operations": 1000}, id="plain"),
        pytest.param({"operations": 1000, "poison": 3}, id="poison"),
        pytest.param({"operations": 1000, "fresh_is_zero": 0}, id="memory that is not zero"),
        pytest.param({"operations": 1000, "touchable": 0}, id="memory that is not there"),
        pytest.param({"operations": 1000, "capacity": 64 << 10, "largest": 9000}, id="a small tier"),
        pytest.param({"operations": 1000, "largest": 2000}, id="small blocks"),
    ],
)
def test_invariants_hold_after_every_operation(programs: Path, options: dict[str, int]) -> None:
    assert "allocations" in fuzz(programs, "address,undefined", seed=1, **options)


def test_threads_share_a_heap(programs: Path) -> None:
    fuzz(
        programs,
        "address,undefined",
        threads=4,
        rounds=3,
        operations=2000,
        check_every=200,
        capacity=16 * MIB,
    )


@pytest.mark.slow
@pytest.mark.parametrize("membarrier", [1, 0])
@pytest.mark.parametrize("poison", [0, 10])
def test_threads_share_a_heap_without_data_races(programs: Path, poison: int, membarrier: int) -> None:
    for seed in range(4):
        fuzz(
            programs,
            "thread",
            seed=seed,
            threads=4,
            rounds=3,
            operations=2000,
            check_every=500,
            poison=poison,
            membarrier=membarrier,
            capacity=4 * MIB,
            largest=20000,
        )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_long_runs(programs: Path, seed: int) -> None:
    threads = 1 + seed % 4
    fuzz(
        programs,
        "address,undefined",
        seed=100 + seed,
        threads=threads,
        rounds=2,
        operations=4000,
        check_every=4 if threads == 1 else 500,
        poison=(0, 5)[seed % 2],
        decommit=seed // 2 % 2,
        capacity=(1, 4, 32)[seed % 3] * MIB,
    )
