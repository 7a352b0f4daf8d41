"""The suite of emucxl over a core that was built with the sanitizers.

The C programs have their own runs under them, in the tests that compile them; here the calls come from Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.c_programs import ROOT, SANITIZER_OPTIONS, compiler, link_library, sanitizer_runtime

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TESTS = ROOT / "packages" / "emucxl" / "tests"
# These are about what a sanitizer changes: times, how much memory is taken, and how many addresses there are.
NOT_THESE = (
    "test_a_null_tier_allocates_what_no_machine_has",
    "test_a_tier_of_addresses_alone_may_be_larger_than_memory",
    "test_the_largest_tier_is_the_one_that_messages_name",
    "test_memory_that_is_not_there_is_priced_all_the_same",
    "test_growth_into_memory_that_is_gone_is_refused_and_not_killed",
    "test_importing_pulls_in_few_modules_and_neither_numpy_nor_torch",
    "test_nothing_leaks_over_many_operations",
)
RACES_ON_PURPOSE = (
    "test_threads_that_use_a_buffer_while_another_frees_it_get_errors"  # on the bytes of a buffer
)
# Python keeps what it allocated; a test may want a process to die of its SIGSEGV; and threads may start after a fork.
OPTIONS = {
    "ASAN_OPTIONS": ":detect_leaks=0:handle_segv=0",
    "TSAN_OPTIONS": ":die_after_fork=0:handle_segv=0",
    "UBSAN_OPTIONS": "",
}


def suites() -> list[Path]:
    """The files of tests that call the core from Python alone, and measure nothing."""
    return [
        path
        for path in sorted(TESTS.rglob("test_*.py"))
        if path.parent.name != "bench" and "support.c_programs" not in path.read_text()
    ]


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def sanitized(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, str]]:
    """The sanitizers, and the environment of a Python whose emucxl loads a core built with them."""
    sanitize: str = request.param
    runtime = sanitizer_runtime(sanitize)
    if compiler() is None or runtime is None:
        pytest.skip(f"no C compiler, or no runtime of -fsanitize={sanitize}")
    return sanitize, {
        **os.environ,
        **{name: options + OPTIONS[name] for name, options in SANITIZER_OPTIONS.items()},
        "LD_PRELOAD": runtime,
        "EMUCXL_LIBRARY": str(link_library(tmp_path_factory.mktemp("sanitized"), sanitize)),
        "PYTHONMALLOC": "malloc",
    }


@pytest.mark.parametrize("suite", suites(), ids=lambda path: str(path.relative_to(TESTS)))
def test_suite_is_clean(sanitized: tuple[str, dict[str, str]], suite: Path, tmp_path: Path) -> None:
    sanitize, environment = sanitized
    if sanitize == "thread" and suite.parent.name == "cli":
        pytest.skip("its commands run in a shell, which does not bear a preloaded thread sanitizer")
    left_out = [*NOT_THESE, *([RACES_ON_PURPOSE] if sanitize == "thread" else [])]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    chosen = ["-k", f"not ({' or '.join(left_out)})", str(suite)]
    reports = {name: f"{environment[name]}:log_path={tmp_path / 'report'}" for name in SANITIZER_OPTIONS}
    done = subprocess.run(
        [*command, *chosen],
        cwd=ROOT,
        env={**environment, **reports},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    report = "".join(path.read_text() for path in tmp_path.glob("report*"))
    assert not report, report[:8000]
    output = done.stdout + done.stderr
    assert done.returncode in (0, pytest.ExitCode.NO_TESTS_COLLECTED), output[-6000:]
