"""Traces: when each step of each rank ran, its file, and its summary.

May import the plan, its executors and the simulator. Names are loaded on first use, so that a check of a file's path
loads no simulator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emucxl.lazy import lazy_names

if TYPE_CHECKING:
    from tokenweave.trace.chrome import THREADS
    from tokenweave.trace.file import check_writable
    from tokenweave.trace.recorder import MAX_STEPS, Recorder, clock_id
    from tokenweave.trace.recording import Pass, Recording, Span
    from tokenweave.trace.summary import (
        Figures,
        Kind,
        Summary,
        costs_of,
        layer_of,
        mean,
        measure,
        summarise,
    )
    from tokenweave.trace.trace import VERSION, Trace

_HOMES = {
    "MAX_STEPS": "recorder",
    "THREADS": "chrome",
    "VERSION": "trace",
    "Figures": "summary",
    "Kind": "summary",
    "Pass": "recording",
    "Recorder": "recorder",
    "Recording": "recording",
    "Span": "recording",
    "Summary": "summary",
    "Trace": "trace",
    "check_writable": "file",
    "clock_id": "recorder",
    "costs_of": "summary",
    "layer_of": "summary",
    "mean": "summary",
    "measure": "summary",
    "summarise": "summary",
}

__all__ = [
    "MAX_STEPS",
    "THREADS",
    "VERSION",
    "Figures",
    "Kind",
    "Pass",
    "Recorder",
    "Recording",
    "Span",
    "Summary",
    "Trace",
    "check_writable",
    "clock_id",
    "costs_of",
    "layer_of",
    "mean",
    "measure",
    "summarise",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
