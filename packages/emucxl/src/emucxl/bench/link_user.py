"""A process that reads through a link as fast as the model lets it, for benchmarks.

    python -m emucxl.bench.link_user FD SIZE_BYTES

It prints "ready", is told on its input when to begin and to end (nanoseconds of the clock), and then prints one JSON
object: the bytes it read, when it ended, and the processor time it took.
"""

from __future__ import annotations

import json
import sys
import time

from emucxl.calibration import of_this_machine
from emucxl.context import Context
from emucxl.links import Link
from emucxl.timing import Timing

LATENCY_NS = 2000.0


def read(link: Link, size_bytes: int) -> int:
    """Bytes that were read between the times that it was told, `size_bytes` at a time."""
    with Context(calibration=of_this_machine()) as context:
        tier = context.add_tier(
            "far", size_bytes * 2 + (4 << 20), timing=Timing(LATENCY_NS, LATENCY_NS), link=link
        )
        with tier.alloc(size_bytes) as buffer:
            target, moved = bytearray(size_bytes), 0
            memoryview(buffer)[:] = bytes(size_bytes)
            _, end_ns = _told()
            while time.monotonic_ns() < end_ns:
                buffer.read_into(target)
                moved += size_bytes
    return moved


def _told() -> tuple[int, int]:
    """Reads when to begin and to end; returns when it is time to begin."""
    print("ready", flush=True)
    begin_ns, end_ns = map(int, sys.stdin.readline().split())
    time.sleep(max(0, begin_ns - time.monotonic_ns()) / 1e9)
    return begin_ns, end_ns


def main() -> None:
    fd, size_bytes = map(int, sys.argv[1:])
    with Link.attach(fd) as link:
        moved = read(link, size_bytes)
    print(json.dumps({"bytes": moved, "end_ns": time.monotonic_ns(), "processor_s": time.process_time()}))


if __name__ == "__main__":
    main()
