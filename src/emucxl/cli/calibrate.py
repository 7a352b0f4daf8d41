"""`emucxl calibrate`: measures what this machine does by itself, keeps it, and checks the delays that build on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from emucxl.cli import console

if TYPE_CHECKING:
    from emucxl.calibration import Calibration


def calibrate(
    budget_s: Annotated[
        float, typer.Option("--budget", help="Seconds to measure for.", min=0.1, max=10.0)
    ] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure this machine's own latency and bandwidth, which modelled delays build on, and keep the figures."""

    with console.progress("calibrating") as progress:
        found = _measure(budget_s, progress)
    if as_json:
        console.show_json({"calibration": asdict(found)})


def _measure(budget_s: float, progress: Callable[[float, str], None]) -> Calibration:
    """Measures in a thread, while this one tells how far it should be."""
    from emucxl import calibration

    found: list[Calibration] = []
    worker = threading.Thread(target=lambda: found.append(calibration.measure(budget_s)))
    worker.start()
    start = time.monotonic()
    while worker.is_alive():
        worker.join(0.2)
        progress(min(1.0, (time.monotonic() - start) / budget_s), "latency and bandwidth")
    return found[0]
