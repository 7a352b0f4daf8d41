"""The registers of Triton's compiled kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Registers:
    """The registers that one compiled kernel takes."""

    kernel: str
    a_thread: int
    spilled: int  # words of 4 bytes for each thread, in local memory
    threads: int  # of a CTA

    @property
    def text(self) -> str:
        return f"{self.kernel} {self.a_thread} x {self.threads} threads"


def registers_of(name: str, kernel: Any) -> list[Registers]:
    """Those of each form in which `kernel`, a function of Triton, has been launched; none where it is interpreted."""
    caches = getattr(kernel, "device_caches", {})
    compiled = [form for cache in caches.values() for form in cache[0].values()]
    return [Registers(name, form.n_regs, form.n_spills, 32 * form.metadata.num_warps) for form in compiled]
