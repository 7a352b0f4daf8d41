"""Traces: when each step of each rank ran, its file, and its summary.

May import the plan, its executors and the simulator. Names are loaded on first use, so that a check of a file's path
loads no simulator.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from tokenweave.trace.trace import (
        MAX_STEPS,
        THREADS,
        VERSION,
        Pass,
        Recorder,
        Recording,
        Span,
        Trace,
        check_writable,
        clock_id,
    )

_HOMES = {
    "MAX_STEPS": "trace",
    "THREADS": "trace",
    "VERSION": "trace",
    "Figures": "summary",
    "Kind": "summary",
    "Pass": "trace",
    "Recorder": "trace",
    "Recording": "trace",
    "Span": "trace",
    "Summary": "summary",
    "Trace": "trace",
    "check_writable": "trace",
    "clock_id": "trace",
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


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
