"""Findings of a stage, and the file by which it tells them.

Invariants
1. The file is whole at every moment: a stage that is killed has told all that it knew.
2. What is shown again, or kept again, under the same name replaces what was there.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from interlace.errors import BenchError


class Verdict(StrEnum):
    """Whether a finding is what was asked for."""

    NONE = ""  # nothing was asked for
    MET = "met"
    MISSED = "missed"
    NOT_RUN = "not run"


class State(StrEnum):
    """How far a stage has come."""

    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"
    NOT_RUN = "not run"
    NO_DEVICE = "no device"


class NoDevice(BenchError):
    """There is no GPU to measure."""


class NotRun(BenchError):
    """A stage cannot run here; that is no failure of what it measures."""


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    what: str
    got: str
    target: str = ""
    verdict: Verdict = Verdict.NONE


def asked(what: str, got: str, target: str, is_met: bool) -> Finding:
    """A finding beside what was asked for."""
    return Finding(what, got, target, Verdict.MET if is_met else Verdict.MISSED)


@dataclass(frozen=True)
class Told:
    """A stage's file, read."""

    state: State
    reason: str
    findings: tuple[Finding, ...]
    data: dict[str, Any]


class StageFile:
    """A stage's side of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._findings: dict[str, Finding] = {}
        self._data: dict[str, Any] = {}
        self._write(State.BEGUN, "")

    def show(self, *findings: Finding) -> None:
        """Adds rows to the table."""
        self._findings |= {finding.what: finding for finding in findings}
        self._write(State.BEGUN, "")

    def keep(self, **data: Any) -> None:
        """Adds to the record what the table has no room for; anything that is JSON."""
        self._data |= data
        self._write(State.BEGUN, "")

    def end(self, state: State, reason: str = "") -> None:
        """Says how the stage ended."""
        self._write(state, reason)

    def _write(self, state: State, reason: str) -> None:
        told = Told(state, reason, tuple(self._findings.values()), self._data)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(asdict(told)))
        os.replace(new, self._path)


def read(path: Path) -> Told:
    """Returns what the file at `path` says.

    Raises:
        BenchError: there is none, or it is damaged.
    """
    try:
        found = json.loads(path.read_text())
        findings = tuple(
            Finding(**{**each, "verdict": Verdict(each["verdict"])}) for each in found["findings"]
        )
        return Told(State(found["state"]), str(found["reason"]), findings, dict(found["data"]))
    except FileNotFoundError:
        raise BenchError("it told nothing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"what it told cannot be read: {type(error).__name__}: {error}") from None
