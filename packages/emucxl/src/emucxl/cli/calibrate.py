"""`emucxl calibrate`: measures what this machine does by itself, keeps it, and measures the delays that build on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from emucxl.cli import console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from emucxl.calibration import Accuracy, Calibration

UNITS = {"ns": "ns", "gbps": "GB/s"}
WHAT = {
    "read_latency_ns": "64 bytes read from memory that is in no cache",
    "write_latency_ns": "64 bytes written",
    "read_bandwidth_gbps": "read by one thread",
    "write_bandwidth_gbps": "written by one thread",
    "clock_overhead_ns": "reading the clock once",
    "sleep_overshoot_ns": "how late a sleep ends, 99th percentile",
    "exit_overhead_ns": "what a call takes besides its delay",
    "num_cores": "cores it was measured on",
}


def calibrate(
    budget_s: Annotated[
        float, typer.Option("--budget", help="Seconds to measure for.", min=0.1, max=10.0)
    ] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure this machine's own latency and bandwidth, keep them, and say how exact the delays are."""
    from emucxl import calibration

    with console.progress("calibrating") as progress:
        found = calibration.keep(_measure(budget_s, progress))
        progress(1.0, "verifying")
        accuracies = found.report()
    if as_json:
        console.show_json(
            {
                "calibration": asdict(found),
                "kept_at": str(calibration.cache_path()),
                "verification": [
                    asdict(accuracy) | {"error": accuracy.error, "kind": "modelled"}
                    for accuracy in accuracies
                ],
            }
        )
    else:
        console.show(
            *_renderables(found, accuracies), f"Kept in {console.short_path(str(calibration.cache_path()))}"
        )


def _measure(budget_s: float, progress: Callable[[float, str], None]) -> Calibration:
    """Measures in this thread, while another one tells how far it should be."""
    from emucxl import calibration

    done = threading.Event()

    def tell() -> None:
        start = time.monotonic()
        while not done.wait(0.1):
            progress(min(1.0, (time.monotonic() - start) / budget_s), "measuring")

    if not console.is_progress_shown():  # no thread that could disturb
        return calibration.measure(budget_s)
    teller = threading.Thread(target=tell)
    teller.start()
    try:
        return calibration.measure(budget_s)
    finally:
        done.set()
        teller.join()


def _renderables(found: Calibration, accuracies: tuple[Accuracy, ...]) -> list[RenderableType]:
    from rich.table import Table

    figures = Table(title="This machine, measured", title_justify="left", title_style="bold")
    figures.add_column("what")
    figures.add_column("figure", justify="right")
    for name, value in asdict(found).items():
        if name in ("latency_error", "least_latency_ns"):
            continue
        unit = UNITS.get(name.rpartition("_")[2])
        figures.add_row(WHAT.get(name, name), str(value) if unit is None else f"{value:,.1f} {unit}")
    figures.add_row("least latency that is promised", f"{found.promised_latency_ns:,.1f} ns")
    figures.add_row("its error, when tried out", f"{found.latency_error:+.2%}")
    table = Table(title="Modelled reads of 64 bytes, measured", title_justify="left", title_style="bold")
    for column in ("target", "median", "99th percentile", "error of the median"):
        table.add_column(column, justify="right")
    for accuracy in accuracies:
        table.add_row(
            f"{accuracy.target_ns:,.0f} ns",
            f"{accuracy.p50_ns:,.0f} ns",
            f"{accuracy.p99_ns:,.0f} ns",
            f"{accuracy.error:+.2%}",
        )
    return [figures, table]
