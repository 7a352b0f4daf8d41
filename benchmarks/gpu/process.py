"""A process with a bounded time, and what it told: one that fails, hangs, dies or tells garbage ends in words.

Invariants
1. It leads a process group of its own, and the group ends with it, whatever it has started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import Finding, State, Told, read
from interlace.errors import BenchError

TRACEBACK_S = 3.0  # for a process that hangs to say where
END_S = 10.0  # a process that waits for a driver may not end even when it is killed
LOG_LINES = 20


@dataclass(frozen=True)
class StageOutcome:
    """How a stage ended, and all that it found before."""

    stage: str
    state: State
    reason: str
    seconds: float
    findings: tuple[Finding, ...]
    data: dict[str, Any]
    log: tuple[str, ...] = ()  # the last lines that it printed


def run_bounded(
    name: str, command: Sequence[str], path: Path, log: Path, bound_s: float, environment: Mapping[str, str]
) -> StageOutcome:
    """Runs `command`, which tells through the file at `path` and prints to `log`; ends it after `bound_s`."""
    path.unlink(missing_ok=True)
    began_s = time.perf_counter()
    with log.open("wb") as output, _termination_raised():
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
        )
        try:
            ending = _ending_of(process, bound_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    seconds = time.perf_counter() - began_s
    lines = tuple(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    try:
        told = read(path)
    except BenchError as error:
        told = Told(State.FAILED, _without_word(ending, error, lines), (), {})
    else:
        told = _judged(told, ending)
    return StageOutcome(name, told.state, told.reason, seconds, told.findings, told.data, lines)


@contextlib.contextmanager
def _termination_raised() -> Iterator[None]:
    """Lets SIGTERM end this process by an exception, as Ctrl-C does, so that what it started is ended before."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _ending_of(process: subprocess.Popen[bytes], bound_s: float) -> str:
    """How it ended, in words; "" where it ended well."""
    try:
        code = process.wait(bound_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # Python's fault handler prints where it is
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TRACEBACK_S)
        return f"took longer than {bound_s:.0f} s" + _killed(process)
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"ended with status {code}" if code else ""


def _killed(process: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        return " and cannot be killed"
    return ""


def _judged(told: Told, ending: str) -> Told:
    """A stage that had said how it ended has ended so, even if its process came to grief afterwards."""
    if told.state is State.BEGUN:
        return replace(told, state=State.FAILED, reason=ending or "ended before it was done")
    if told.state is State.DONE and ending:
        return replace(told, reason=f"{ending}, after it was done")
    return told


def _without_word(ending: str, error: BenchError, lines: Sequence[str]) -> str:
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    return f"{ending or 'ended'}; {error}; its last line: {last}"
