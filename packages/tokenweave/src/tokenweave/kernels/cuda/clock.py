"""The time inside a kernel: the one primitive that Triton's interpreter cannot run as it is compiled."""

from __future__ import annotations

import time

import triton
import triton.language as tl

is_interpreted: bool = triton.knobs.runtime.interpret  # triton decides it once too, when a kernel is declared


if is_interpreted:

    def now_ns() -> int:
        """Nanoseconds since some moment, on this host's clock."""
        return time.monotonic_ns()

else:

    @triton.jit
    def now_ns():
        """Nanoseconds since some moment, on the device's clock. It ticks about every microsecond."""
        return tl.inline_asm_elementwise(
            "mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
        )
