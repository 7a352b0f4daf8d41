"""`emucxl presets`: timings to model a tier with, and where their figures come from."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emucxl.cli import console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from emucxl.presets import Preset


def presets(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the timings that tiers can be modelled with, and their sources."""
    from emucxl.presets import presets as all_presets

    found = all_presets()
    if as_json:
        console.show_json({"presets": {name: asdict(preset) for name, preset in found.items()}})
    else:
        console.show(*_renderables(found))


def _renderables(found: dict[str, Preset]) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Presets", title_justify="left", title_style="bold")
    table.add_column("name")
    table.add_column("what it is")
    for column in ("read ns", "write ns", "read GB/s", "write GB/s", "hops"):
        table.add_column(column, justify="right")
    for name, preset in found.items():
        timing = preset.timing
        table.add_row(
            name,
            preset.title,
            f"{timing.read_latency_ns:,.0f}",
            f"{timing.write_latency_ns:,.0f}",
            _bandwidth(timing.read_bandwidth_gbps),
            _bandwidth(timing.write_bandwidth_gbps),
            f"{timing.switch_hops} x {timing.hop_latency_ns:.0f} ns" if timing.switch_hops else "-",
        )
    sources = (Text(f"{name}: {_source(preset)}") for name, preset in found.items())
    return [table, Text("Latency of one 64-byte access, unloaded. Sources:"), *sources]


def _bandwidth(bandwidth_gbps: float) -> str:
    return f"{bandwidth_gbps:g}" if bandwidth_gbps else "unlimited"


def _source(preset: Any) -> str:
    parts = (preset.source, getattr(preset, "url", None), getattr(preset, "note", None))
    return ". ".join(part.rstrip(".") for part in parts if part)
