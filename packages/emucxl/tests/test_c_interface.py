"""emucxl_lib.h: programs written for the published interface, call by call and whole, under the sanitizers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from support.c_programs import SANITIZER_OPTIONS, compile_program, compiler, run_program

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")

EXAMPLES = Path(__file__).parents[3] / "examples" / "memory"
LIGHT = "undefined"  # where memory or time is counted; test_forks.py has this core built anyway

CHECKS = [
    "closed",
    "nested_init",
    "alloc_and_free",
    "resize",
    "migrate",
    "read_and_write",
    "memory_calls",
    "threads",
]

# As published: x, promote on a remote hit, leave in place.
PUBLISHED = """\
  x  promote    leave
  0    29.79    30.01
 10    81.37     3.29
 20    50.95     3.77
 30    28.58     4.28
 40    18.03     4.94
 50    14.87     5.94
 60    12.67     7.57
 70    12.68    10.00
 80    22.22    21.17
 90    30.43    29.95
"""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(Path("paper_calls.c"), tmp_path_factory.mktemp("calls"))


def run_in(program: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments],
        env={**os.environ, **SANITIZER_OPTIONS, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("check", CHECKS)
def test_the_calls_do_what_their_header_says(calls: Path, check: str) -> None:
    assert run_program(calls, check) == ""


def test_threads_race_nowhere(tmp_path: Path) -> None:
    run_program(compile_program(Path("paper_calls.c"), tmp_path, "thread"), "threads", "nested_init")


# ---- the environment ------------------------------------------------------------------------------------------------


def test_a_node_of_a_chosen_size_is_full_when_that_is_used_up(calls: Path) -> None:
    done = run_in(calls, {"EMUCXL_LOCAL_BYTES": "4M", "EMUCXL_REMOTE_BYTES": "4194304"}, "full_node")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("EMUCXL_LOCAL_BYTES", "much", "got EMUCXL_LOCAL_BYTES=much in the environment; expected a size"),
        ("EMUCXL_LOCAL_BYTES", "4MB", "expected a size of at least 1, as 4096, 256M or 16G"),
        ("EMUCXL_LOCAL_BYTES", "0", "expected a size of at least 1"),
        ("EMUCXL_LOCAL_BYTES", "99999999999T", "expected a size of at least 1"),
        ("EMUCXL_LOCAL_BYTES", "900T", "got a capacity of 989560464998400 bytes for tier 'local'"),
        ("EMUCXL_REMOTE_DAX", "/nowhere/dax0.0", "tier 'remote': "),
        (
            "EMUCXL_REMOTE_LATENCY",
            "500",
            "got EMUCXL_REMOTE_LATENCY in the environment; expected EMUCXL_LOCAL_ or",
        ),
        ("EMUCXL_REMOTE_LATENCY_NS", "-5", "expected nanoseconds, more than 0"),
        ("EMUCXL_REMOTE_LATENCY_NS", "1e400", "expected nanoseconds, more than 0"),
        ("EMUCXL_LOCAL_BANDWIDTH_GBPS", "nan", "expected 1e9 bytes per second, more than 0"),
        ("EMUCXL_LOCAL_NUMA_NODE", "first", "expected the number of a NUMA node"),
    ],
)
def test_an_environment_that_makes_no_sense_fails_init_with_its_reason(
    calls: Path, name: str, value: str, reason: str
) -> None:
    done = run_in(calls, {name: value}, "bad_environment")
    assert done.returncode == 0
    assert done.stdout.startswith("emucxl_init() failed: ")
    assert reason in done.stdout
    assert done.stderr == f"emucxl: {done.stdout}"
    quiet = run_in(calls, {name: value, "EMUCXL_QUIET": "1"}, "bad_environment")
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")


def test_the_default_sizes_fit_a_small_machine(tmp_path: Path) -> None:
    """256 MiB of addresses, in all."""
    program = compile_program(EXAMPLES / "two_nodes.c", tmp_path, LIGHT)
    done = run_in(Path("/bin/sh"), {}, "-c", f"ulimit -v 262144 && exec {program}")
    assert done.returncode == 0, done.stderr
    assert "answer = 42" in done.stdout


def test_a_modelled_node_takes_its_time(tmp_path: Path) -> None:
    """100 us for each of 300 elements that are written, linked and read again: 0.09 s at least, if they are remote."""
    queue = compile_program(EXAMPLES / "node_queue.c", tmp_path, LIGHT)
    done = run_in(queue, {"EMUCXL_REMOTE_LATENCY_NS": "100000"}, "300")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    times_ms = {
        (number, node): float(enqueue) + float(dequeue)
        for number, (node, enqueue, dequeue) in enumerate(rows)
    }
    remote = [time_ms for (_, node), time_ms in times_ms.items() if node == "remote"]
    local = [time_ms for (_, node), time_ms in times_ms.items() if node == "local"]
    assert len(remote) == len(local) == 2
    assert min(remote) >= 89.0
    assert min(remote) > 2 * min(local)


def test_a_file_stands_in_for_a_device(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(bytes(4 << 20))
    program = compile_program(EXAMPLES / "two_nodes.c", tmp_path, LIGHT)
    done = run_in(program, {"EMUCXL_REMOTE_DAX": str(device)})
    assert done.returncode == 0, done.stderr
    assert "read back: written locally" in done.stdout


# ---- the documentation ----------------------------------------------------------------------------------------------

PRINTING = re.compile(r"^```c\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = re.compile(r"0x[0-9a-f]+")


@pytest.mark.parametrize("number", [0, 1])
def test_the_programs_of_the_documentation_print_what_is_shown(number: int, tmp_path: Path) -> None:
    shown = PRINTING.findall((EXAMPLES.parents[1] / "docs" / "memory" / "c.md").read_text())
    assert len(shown) == 2
    source, output = shown[number]
    (tmp_path / "shown.c").write_text(source)
    printed = run_program(compile_program(tmp_path / "shown.c", tmp_path))
    assert ADDRESS.sub("0x", printed) == ADDRESS.sub("0x", output)


def test_the_percentages_in_the_documentation_are_the_published_ones() -> None:
    assert PUBLISHED in (EXAMPLES.parents[1] / "docs" / "memory" / "c.md").read_text()


# ---- whole programs -------------------------------------------------------------------------------------------------


def test_the_direct_example_prints_what_it_should(tmp_path: Path) -> None:
    assert run_program(compile_program(EXAMPLES / "two_nodes.c", tmp_path)) == (
        "allocated              node 0, 4096 bytes; local 4096, remote 0 bytes in all\n"
        "migrated               node 1, 4096 bytes; local 0, remote 4096 bytes in all\n"
        "read back: written locally\n"
        "resized                node 0, 12288 bytes; local 12288, remote 0 bytes in all\n"
        "answer = 42, local: no\n"
        "left: local 0, remote 0 bytes\n"
    )


def test_the_queue_example_runs_in_both_orders(tmp_path: Path) -> None:
    lines = run_program(compile_program(EXAMPLES / "node_queue.c", tmp_path), 2000).splitlines()
    assert lines[0] == "2000 elements"
    assert [line.split()[0] for line in lines[2:]] == ["local", "remote", "remote", "local"]


def test_the_key_value_example_prints_the_published_percentages(tmp_path: Path) -> None:
    store = ["-O2", str(EXAMPLES / "kv_store.c")]
    assert run_program(compile_program(EXAMPLES / "kv_hits.c", tmp_path, LIGHT, store)) == PUBLISHED


def test_the_key_value_example_is_clean_under_the_sanitizers(tmp_path: Path) -> None:
    program = compile_program(EXAMPLES / "kv_hits.c", tmp_path, flags=[str(EXAMPLES / "kv_store.c")])
    assert run_program(program, 90) == "".join(PUBLISHED.splitlines(keepends=True)[i] for i in (0, 10))
