"""Where comparisons of dtypes are kept: a small file of the cache directory for each machine, build and model.

Thread safety: any number of processes may load and keep at the same time. Invariants: (1) a file is there whole or not
at all; (2) what is kept first stays, and everybody goes on with that, so that processes that measured at the same time
take the same dtype. A cache that cannot be read or written is no error: then each start measures.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interlace.engine.dtypes.products import Comparison, Products, ProductTimes
from interlace.environment import cache_directory

FORMAT = 1


@dataclass(frozen=True)
class Subject:
    """The facts that a comparison depends on."""

    machine: str
    isa: str
    library: str  # its version and build
    threads: int
    products: Products

    @property
    def path(self) -> Path:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return cache_directory() / "dtype" / f"{digest[:16]}.json"


def load(subject: Subject) -> Comparison | None:
    """The comparison that is kept; None where there is none that can be used."""
    try:
        found = json.loads(subject.path.read_text())
        if found["subject"] != _as_json(asdict(subject)) or found["format"] != FORMAT:
            return None
        return Comparison(
            subject.products, ProductTimes(**found["float32"]), ProductTimes(**found["bfloat16"])
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(subject: Subject, measured: Comparison) -> Comparison:
    """Keeps `measured` where that is possible. Returns the comparison to go by: another process may have been first."""
    content = {
        "format": FORMAT,
        "subject": asdict(subject),
        "float32": asdict(measured.float32),
        "bfloat16": asdict(measured.bfloat16),
    }
    for replace in (False, True):  # a file that cannot be used is replaced
        with contextlib.suppress(OSError):
            _write(subject.path, json.dumps(content, indent=1), replace)
        if (found := load(subject)) is not None:
            return found
    return measured


def _write(path: Path, text: str, replace: bool) -> None:
    """Raises OSError, FileExistsError among them where there is such a file and `replace` is False."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".json")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        if replace:
            os.replace(name, path)
        else:
            os.link(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _as_json(value: Any) -> Any:
    """`value` as it is read back: JSON has lists where values have tuples."""
    return json.loads(json.dumps(value))
