"""The order of a device's kernels as a picture: a row for each stream, time to the right."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.spans import ATTENTION, OTHER, PRODUCT, REDUCTION, Span
from interlace.cli.svg import Picture  # the pictures of the documentation are drawn by it, too

WIDTH, LEFT, RIGHT = 1000.0, 110.0, 976.0
TOP, ROW, BAR = 84.0, 44.0, 30.0
LOOKS = {PRODUCT: "first", ATTENTION: "by-third whole", REDUCTION: "second", OTHER: "whole"}
NUM_TICKS = 5


def draw(spans: Sequence[Span], title: str, about: str) -> str:
    """An SVG of `spans`, at least one, of all streams on which they ran."""
    streams = sorted({span.stream for span in spans})
    begin_us = min(span.begin_us for span in spans)
    total_us = max(span.end_us for span in spans) - begin_us
    bottom = TOP + ROW * len(streams)
    picture = Picture(WIDTH, bottom + 78, f"{title}: {total_us:,.0f} us on {len(streams)} streams")
    picture.text("title", 24, 34, title)
    picture.text("small quiet", 24, 56, about)
    per_us = (RIGHT - LEFT) / total_us
    for row, stream in enumerate(streams):
        top = TOP + ROW * row
        picture.text("small", 24, top + BAR / 2 + 4, f"stream {stream}")
        picture.box("track", LEFT, top, RIGHT - LEFT, BAR)
        for span in spans:
            if span.stream == stream:
                width = max(per_us * (span.end_us - span.begin_us), 0.3)
                picture.box(
                    LOOKS[span.kind], LEFT + per_us * (span.begin_us - begin_us), top, width, BAR, radius=1
                )
    for tick in range(NUM_TICKS + 1):
        x = LEFT + (RIGHT - LEFT) * tick / NUM_TICKS
        picture.line("line", x, TOP - 6, x, bottom - 8)
        picture.text("small quiet", x, bottom + 8, f"{total_us * tick / NUM_TICKS:,.0f} us", "middle")
    x = LEFT
    for kind, look in LOOKS.items():
        picture.box(look, x, bottom + 34, 14, 14)
        picture.text("small", x + 20, bottom + 46, kind)
        x += 130
    return picture.to_svg()
