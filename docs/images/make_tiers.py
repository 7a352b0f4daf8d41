"""Draws tiers.svg, how long a read of each preset's memory takes, and load.svg, how its latency grows under load.

    python docs/images/make_tiers.py

Every figure is modelled: the reads run on a virtual clock, and so take the same time on every machine.
"""

from __future__ import annotations

import math
from pathlib import Path

from emucxl import Context
from emucxl.presets import presets
from interlace.cli.svg import Picture

HERE = Path(__file__).parent
NAMES = {
    "local-ddr5": ("local", "eight channels of DDR5"),
    "cxl-direct": ("CXL", "an expander of its own"),
    "cxl-switched": ("CXL, switched", "in a pool, behind a switch"),
    "rdma-far": ("RDMA", "memory of another machine"),
}
SIZES = {64: "a read of 64 bytes", 1 << 20: "a read of 1 MiB"}
LEFT, RIGHT = 250.0, 940.0
LEAST_NS, MOST_NS = 50.0, 200_000.0


def read_ns(name: str) -> list[int]:
    """How long reads of `SIZES` from that preset's memory take, on a virtual clock."""
    took = []
    with Context(clock="virtual") as context:
        tier = context.add_tier("tier", 4 << 20, timing=name)
        with tier.alloc(1 << 20) as buffer:
            for size in SIZES:
                context.advance(1_000_000)  # so that the queue is empty again
                before_ns = context.now_ns
                buffer.read(size)
                took.append(context.now_ns - before_ns)
    return took


def tiers() -> str:
    """A row for each preset, on a logarithmic scale of time."""
    picture = Picture(
        1000, 346, "How long a read from each tier takes, modelled: from 0.1 microseconds to 100"
    )
    picture.text("title", 24, 36, "How far away each tier is")
    for decade_ns, says in {100: "100 ns", 1_000: "1 µs", 10_000: "10 µs", 100_000: "100 µs"}.items():
        picture.line("line", x_of(decade_ns), 62, x_of(decade_ns), 284)
        picture.text("small quiet", x_of(decade_ns), 302, says, "middle")
    for row, (name, (title, says)) in enumerate(NAMES.items()):
        y = 86.0 + 56 * row
        picture.text("bold", 24, y, title)
        picture.text("small quiet", 24, y + 18, says)
        small_ns, large_ns = read_ns(name)
        picture.box("track", x_of(small_ns), y - 3, x_of(large_ns) - x_of(small_ns), 8, radius=4)
        picture.circle("first", x_of(small_ns), y + 1, 8)
        picture.circle("second", x_of(large_ns), y + 1, 8)
        picture.text("small", x_of(small_ns), y + 25, told(small_ns), "middle")
        picture.text("small", x_of(large_ns), y + 25, told(large_ns), "middle")
    for x, look, says in zip((LEFT, LEFT + 170), ("first", "second"), SIZES.values(), strict=True):
        picture.circle(look, x + 8, 326, 6)
        picture.text("small quiet", x + 22, 330, says)
    picture.text("small quiet", RIGHT, 330, "modelled, from presets with their sources", "end")
    return picture.to_svg()


def x_of(time_ns: float) -> float:
    return LEFT + (RIGHT - LEFT) * math.log(time_ns / LEAST_NS) / math.log(MOST_NS / LEAST_NS)


def told(time_ns: int) -> str:
    return f"{time_ns} ns" if time_ns < 1_000 else f"{time_ns / 1e3:.1f} µs"


def load() -> str:
    """A curve for each kind of memory: its latency under load, in multiples of the latency when idle."""
    picture = Picture(
        1000, 330, "How the latency of each preset grows with its load: up to three and a half times"
    )
    picture.text("title", 24, 36, "Latency under load")
    picture.text("quiet", 226, 36, "in multiples of the latency of an idle memory")
    bottom, per_factor, per_cent = 284.0, 80.0, 6.4
    for factor in (1, 2, 3):
        y = bottom - per_factor * (factor - 1)
        picture.line("line", 80, y, 720, y)
        picture.text("small quiet", 68, y + 4, f"{factor} x", "end")
    for percent in (0, 25, 50, 75, 100):
        picture.text("small quiet", 80 + per_cent * percent, bottom + 22, f"{percent} %", "middle")
    picture.text("small quiet", 760, bottom + 22, "of the bandwidth in use")
    picture.text("small quiet", 760, 36, "modelled; our assumption")
    curves = {
        "rdma-far": ("third", "RDMA"),
        "local-ddr5": ("first", "local"),
        "cxl-direct": ("second", "CXL"),
    }
    for name, (look, title) in curves.items():
        points = [
            (80 + 100 * per_cent * point.utilisation, bottom - per_factor * (point.latency_factor - 1))
            for point in presets()[name].timing.curve
        ]
        picture.curve(f"by-{look}", points)
        picture.text("bold", points[-1][0] + 12, points[-1][1] + 5, title)
        largest = presets()[name].timing.curve[-1].latency_factor
        picture.text("quiet", points[-1][0] + 68, points[-1][1] + 5, f"{largest:g} x when full")
    return picture.to_svg()


PICTURES = {"tiers.svg": tiers, "load.svg": load}


def main() -> None:
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw())


if __name__ == "__main__":
    main()
