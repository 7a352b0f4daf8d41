"""A simulated timeline as text: a bar for each step, a line for each lane, a paragraph for each layer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from tokenweave.plan import Lane

if TYPE_CHECKING:
    from tokenweave.plan import Step
    from tokenweave.simulate import Interval, Timeline

COLUMNS = 104  # of bars; a lane's name comes before them
FILL = {0: "░", 1: "▓", None: "▒"}  # of each part; of what both left


def draw(timeline: Timeline, every_layer: bool) -> Iterator[str]:
    """The first and the last layer, those between folded unless `every_layer`; all on one scale."""
    windows = _windows(timeline)
    column_s = max(end_s - start_s for _, start_s, end_s in windows) / COLUMNS
    if column_s <= 0:
        return
    parts = f"{FILL[0]} first part, {FILL[1]} second part"
    if any(each.step.lane is Lane.MEMORY for each in timeline.intervals):
        parts += f", {FILL[None]} for both"
    yield f"{parts}; one column is {_ms(column_s)}"
    for number, (name, start_s, end_s) in enumerate(windows):
        if 0 < number < len(windows) - 1 and len(windows) > 3 and not every_layer:
            if number == 1:
                yield f"\n... {len(windows) - 2} more layers, {_ms(windows[-1][1] - start_s)} (--all draws them)"
            continue
        yield f"\n{name}, from {_ms(start_s)} to {_ms(end_s)}"
        for lane in Lane:
            on_lane = [each for each in timeline.intervals if each.step.lane is lane]
            if on_lane:
                yield f"{lane.value:<9} {_line(on_lane, start_s, end_s, column_s)}".rstrip()


def _windows(timeline: Timeline) -> list[tuple[str, float, float]]:
    """Time cut where each layer begins to be computed: its name, start and end. What comes before and after belongs to
    the ends."""
    begins: dict[int, float] = {}
    for interval in timeline.intervals:
        layer = interval.step.layer
        if layer is not None and interval.step.lane is not Lane.MEMORY:
            begins[layer] = min(begins.get(layer, interval.start_s), interval.start_s)
    layers = sorted(begins)
    cuts = [0.0, *(begins[layer] for layer in layers[1:]), timeline.total_s]
    return [(f"layer {layer}", *cut) for layer, cut in zip(layers, pairwise(cuts), strict=True)]


def _line(intervals: list[Interval], start_s: float, end_s: float, column_s: float) -> str:
    cells = [" "] * round((end_s - start_s) / column_s)
    for interval in intervals:
        if interval.end_s <= start_s or interval.start_s >= end_s:
            continue
        first = max(0, round((interval.start_s - start_s) / column_s))
        last = min(len(cells), round((interval.end_s - start_s) / column_s))
        if first == last and first < len(cells) and interval.end_s > interval.start_s:
            last += 1  # a short step shows too; the next one may take its place
        cells[first:last] = _bar(interval.step, last - first)
    return "".join(cells)


def _bar(step: Step, width: int) -> str:
    """The step's name on its part's shade, if there is room for it."""
    fill = FILL[step.part]
    prime = "'" if step.part == 1 else ""
    for text in (step.name, step.op.short + prime):
        if len(text) < width:
            return (fill + text).ljust(width, fill)
    return fill * width


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms"
