"""The chart of `interlace kv-sim`: hit rate, and time to first token, against the bytes of the tier that was tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from interlace.cli.svg import Picture
from interlace.errors import BlockTraceError

LOOKS = {"lru": "by-first", "tinylfu": "by-second", "belady": "by-third"}
TOP, BOTTOM = 112.0, 340.0
PANELS = ((76.0, 472.0), (576.0, 972.0))  # left and right
NUM_LINES = 4  # of the grid, at least, above the axis


@dataclass(frozen=True)
class Panel:
    """A curve for each policy: `titles` by policy, `curves` of (bytes, value)."""

    heading: str
    left: float
    right: float
    curves: dict[str, list[tuple[float, float]]]
    told: Callable[[float], str]


def draw(report: dict[str, Any]) -> str:
    """An SVG of what `interlace kv-sim --json` printed. The axis of bytes is logarithmic: a size of 0 is left out.

    Raises:
        BlockTraceError: there are fewer than two sizes.
    """
    points = [point for point in report["points"] if point["swept_bytes"]]
    if len({point["swept_bytes"] for point in points}) < 2:
        raise BlockTraceError(
            "a chart has a point for each size above 0; expected two sizes or more, such as --sizes 1000,1TB"
        )
    policies = list(dict.fromkeys(point["policy"] for point in points))
    swept, trace = report["swept"], report["trace"]

    def curves(key: str) -> dict[str, list[tuple[float, float]]]:
        return {
            policy: sorted((p["swept_bytes"], p[key]) for p in points if p["policy"] == policy)
            for policy in policies
        }

    picture = Picture(
        1000, 412, f"{trace['name']}: hit rate and modelled time to first token against the size of {swept}"
    )
    picture.text("title", 24, 36, trace["name"])
    picture.text(
        "small quiet", 24, 58, f"{trace['num_requests']:,} requests, {trace['num_asked']:,} blocks asked for"
    )
    x = 972.0
    for policy in reversed(policies):
        title = report["titles"][policy]
        x -= 8.0 * len(title)
        picture.text("", x, 36, title)
        picture.curve(LOOKS[policy], [(x - 34, 31), (x - 10, 31)])
        x -= 62
    share = Panel(
        "hits, of all blocks asked for", *PANELS[0], curves("hit_rate"), lambda y: f"{100 * y:.3g}%"
    )
    ttft = Panel("mean time to first token, modelled", *PANELS[1], curves("mean_ttft_s"), _seconds)
    for panel in (share, ttft):
        _draw_panel(picture, panel)
    picture.text("small quiet", 500, 394, f"size of the tier {swept}", "middle")
    return picture.to_svg()


def _draw_panel(picture: Picture, panel: Panel) -> None:
    every = [point for curve in panel.curves.values() for point in curve]
    low, high = min(x for x, _ in every), max(x for x, _ in every)
    step = _step(max(y for _, y in every))
    most = step * math.ceil(max(y for _, y in every) / step - 1e-9) or step

    def place(x: float, y: float) -> tuple[float, float]:
        along = math.log(x / low) / math.log(high / low)
        return panel.left + (panel.right - panel.left) * along, BOTTOM - (BOTTOM - TOP) * y / most

    picture.text("bold", panel.left, 92, panel.heading)
    for line in range(round(most / step) + 1):
        _, y = place(low, line * step)
        picture.line("line", panel.left, y, panel.right, y)
        picture.text("small quiet", panel.left - 10, y + 4, panel.told(line * step), "end")
    for tick in _ticks(low, high):
        x, _ = place(tick, 0)
        picture.line("line", x, BOTTOM, x, BOTTOM + 5)
        picture.text("small quiet", x, BOTTOM + 22, _size(tick), "middle")
    for policy, curve in panel.curves.items():
        picture.curve(LOOKS[policy], [place(*point) for point in curve])


def _step(most: float) -> float:
    """A round distance between lines: the largest that leaves at least NUM_LINES of them below `most`."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most / NUM_LINES))
    return max(power * each for each in (1, 2, 5) if power * each <= most / NUM_LINES)


def _ticks(low: float, high: float) -> Sequence[float]:
    """The powers of ten between; the ends, if there is none or one."""
    powers = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    return powers if len(powers) > 1 else (low, high)


def _size(size_bytes: float) -> str:
    for unit, power in {"TB": 12, "GB": 9, "MB": 6, "KB": 3}.items():
        if size_bytes >= 10**power:
            return f"{size_bytes / 10**power:.3g} {unit}"
    return f"{size_bytes:.3g} B"


def _seconds(seconds: float) -> str:
    return "0" if seconds == 0 else f"{seconds:.3g} s" if seconds >= 1e-2 else f"{1e3 * seconds:.3g} ms"
