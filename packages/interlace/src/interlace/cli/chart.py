"""A chart in the terminal: points as dots of braille, four rows and two columns of them to a character."""

from __future__ import annotations

import math
from collections.abc import Sequence

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column of a character
_BLANK = 0x2800


def chart(
    points: Sequence[tuple[float, float]], *, width: int = 72, height: int = 12, log_x: bool = False
) -> list[str]:
    """Lines of text: `points` (x, y) with a scale of y on the left and of x below. Neither axis begins at 0."""
    xs = [math.log(x) if log_x else x for x, _ in points]
    ys = [y for _, y in points]
    cells = [[0] * width for _ in range(height)]
    for x, y in zip(xs, ys, strict=True):
        column = _place(x, min(xs), max(xs), 2 * width)
        row = 4 * height - 1 - _place(y, min(ys), max(ys), 4 * height)
        cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    labels = _labels(min(ys), max(ys), height)
    margin = max(map(len, labels))
    lines = [
        f"{label:>{margin}} │" + "".join(chr(_BLANK | cell) for cell in row).rstrip(chr(_BLANK))
        for label, row in zip(labels, cells, strict=True)
    ]
    first, last = (f"{points[at][0]:,g}" for at in (0, -1))
    return [
        *lines,
        f"{'':>{margin}} └" + "─" * width,
        f"{'':>{margin}}  {first}{last:>{width - len(first)}}",
    ]


def _place(value: float, low: float, high: float, steps: int) -> int:
    return round((value - low) / (high - low) * (steps - 1)) if high > low else 0


def _labels(low: float, high: float, height: int) -> list[str]:
    """The greatest value beside the first line, the least beside the last, the middle between."""
    labels = [""] * height
    labels[-1] = f"{low:,.3g}"
    labels[height // 2] = f"{(low + high) / 2:,.3g}" if height > 2 else labels[height // 2]
    labels[0] = f"{high:,.3g}"
    return labels
