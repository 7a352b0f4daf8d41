"""Kernels that stand in for others: one that only occupies SMs, a copy by as many CTAs as are launched, the time."""

from __future__ import annotations

import triton
import triton.language as tl

from tokenweave.kernels.cuda.clock import now_ns

LOOK_NS = tl.constexpr(
    10_000
)  # between two looks at `stop`: the pollers must not be what slows the others down


@triton.jit(do_not_specialize=["timeout_ns"])
def occupy_kernel(stop, began_ns, was_told, timeout_ns):
    """Holds the threads and registers of a CTA until `stop` (*int32) is not zero, or for `timeout_ns`.

    began_ns: *int64 (num_ctas,), when each CTA began. was_told: *int32 (num_ctas,), whether it ended because of `stop`.
    """
    cta = tl.program_id(0)
    started_ns = now_ns()
    tl.store(began_ns + cta, started_ns)
    told = tl.load(stop, volatile=True)
    is_late = 0
    while (told == 0) & (is_late == 0):
        looked_ns = now_ns()
        waited_ns = looked_ns - looked_ns
        while waited_ns < LOOK_NS:
            waited_ns = now_ns() - looked_ns
        told = tl.load(stop, volatile=True)
        is_late = (now_ns() - started_ns > timeout_ns).to(tl.int32)
    tl.store(was_told + cta, told)


@triton.jit
def stamp_kernel(at_ns):
    """Writes the time to `at_ns` (*int64)."""
    tl.store(at_ns, now_ns())


@triton.jit(do_not_specialize=["num_vectors"])
def copy_kernel(source, target, num_vectors, BLOCK: tl.constexpr):
    """Copies `num_vectors` times 16 elements; CTAs take blocks of them in turn."""
    num_elements = num_vectors.to(tl.int64) * 16  # known to be a multiple of 16, so that accesses are wide
    block = tl.program_id(0).to(tl.int64)
    while block * BLOCK < num_elements:
        at = block * BLOCK + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source + at, mask=at < num_elements), mask=at < num_elements)
        block += tl.num_programs(0)
