"""`pytest -m gpu`: the tests that need a GPU, of every package that has such.

Only files that name the mark are collected, as others may need what is not installed. What is known is told after
each test, so that a test that hangs or crashes takes none of it along.
"""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import Finding, NotRun, StageFile, Verdict, asked
from benchmarks.gpu.stage import StageJob
from interlace.errors import BenchError

MARK = "pytest.mark.gpu"
QUICK = "graph or (peer_pointers and bfloat16 and 2)"
TEST_TIMEOUT_S = 40
LAST_LINES = 12
SHOWN = ("passed", "failed", "skipped")


def run(job: StageJob) -> None:
    if find_spec("pytest") is None:
        raise NotRun("pytest is not installed: pip install pytest")
    import pytest

    root = Path(job.options.root)
    files = files_with_mark(root)
    if not files:
        raise BenchError(f"no test below {root / 'packages'} has the mark {MARK}")
    teller = Teller(job.told, root)
    arguments = [*map(str, files), "-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider"]
    arguments += ["-o", "addopts=--import-mode=importlib", "--rootdir", str(root)]
    arguments.append("--continue-on-collection-errors")
    if find_spec("pytest_timeout"):
        arguments.append(f"--timeout={TEST_TIMEOUT_S}")
    if job.options.is_quick:
        arguments += ["-k", QUICK]
    code = pytest.main(arguments, plugins=[teller])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise BenchError(f"pytest ended with {pytest.ExitCode(code).name}")
    if teller.failures:
        raise BenchError(f"{len(teller.failures)} tests failed: {', '.join(teller.failures)}")


def files_with_mark(root: Path) -> list[Path]:
    """The test files of the packages that name the mark."""
    files = sorted(root.glob("packages/*/tests/**/test_*.py"))
    return [path for path in files if MARK in path.read_text()]


class Teller:
    """A plugin of pytest that tells the tests of each file so far, and keeps the last lines of failures."""

    def __init__(self, told: StageFile, root: Path) -> None:
        self._told, self._root = told, root
        self._counts: dict[str, Counter[str]] = {}
        self._reasons: dict[str, str] = {}
        self.failures: dict[str, list[str]] = {}

    def pytest_runtest_logstart(self, nodeid: str, location: object) -> None:
        self._told.keep(running=nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._failed(report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or not report.passed:
            file = report.nodeid.partition("::")[0]
            counts = self._counts.setdefault(file, Counter())
            if report.failed:
                counts["failed"] += 1
                self._failed(report)
            else:
                counts[report.outcome] += 1
            if report.skipped:
                words = report.longrepr
                self._reasons[file] = str(words[-1] if isinstance(words, tuple) else words).removeprefix(
                    "Skipped: "
                )
            self._told.show(self._finding(file))

    def pytest_sessionfinish(self) -> None:
        self._told.keep(running=None)

    def _failed(self, report: Any) -> None:
        self.failures[report.nodeid] = str(report.longrepr).splitlines()[-LAST_LINES:]
        self._told.keep(failures=self.failures)

    def _finding(self, file: str) -> Finding:
        counts = self._counts[file]
        got = ", ".join(f"{counts[name]} {name}" for name in SHOWN if counts[name])
        what = Path(file).name
        if counts["passed"] + counts["failed"] == 0:
            return Finding(what, f"{got}: {self._reasons[file]}", "all pass", Verdict.NOT_RUN)
        return asked(what, got, "all pass", counts["failed"] == 0)
