"""Conversion of callers' values to Python's own numbers and strings, and their text in messages.

NumPy's scalars are numbers here. A bool is not: `max_tokens=True` is a mistake.
"""

from __future__ import annotations

import math
from itertools import islice
from numbers import Integral, Real
from typing import Any

MAX_SHOWN = 200  # characters of a value in a message


def shown(value: Any) -> str:
    """Returns `value` as a message shows it: never long, and never an error (a huge integer's own repr raises one)."""
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def as_int(value: Any) -> int | None:
    """An integer of any kind as an int; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return None
    return int(value)


def as_float(value: Any) -> float | None:
    """A finite number of any kind as a float; None for everything else, and for what a float cannot hold."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return number if math.isfinite(number) else None


def as_items(value: Any, limit: int) -> tuple[Any, ...] | None:
    """Returns the items of a collection; None for anything else and for more than `limit` items, even endless ones."""
    if isinstance(value, (str, bytes, bytearray)):
        return None
    try:
        items = tuple(islice(iter(value), limit + 1))
    except Exception:  # whatever the caller's own iterator raises
        return None
    return items if len(items) <= limit else None
