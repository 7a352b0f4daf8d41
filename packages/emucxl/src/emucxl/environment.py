"""The only place where emucxl reads the environment.

EMUCXL_LIBRARY   path of a libemucxl.so to load instead of the installed one (a build with sanitizers, say)
XDG_CACHE_HOME   where the measured calibration of this machine is kept (default: ~/.cache)
"""

from __future__ import annotations

import os
from pathlib import Path


def library_override() -> Path | None:
    """The library that EMUCXL_LIBRARY names; None where it says nothing."""
    path = os.environ.get("EMUCXL_LIBRARY")
    return Path(path) if path else None


def cache_directory() -> Path:
    """Where emucxl keeps what it may lose."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "emucxl"
