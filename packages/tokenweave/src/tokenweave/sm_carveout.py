"""SMs that matrix products leave to others: so that a reduction can run beside a product that would take them all.

torch has a switch for it, of the whole process and experimental. It reaches the products that torch gives to cuBLASLt
(those with a bias or with scales; all with `torch.backends.cuda.preferred_blas_library("cublaslt")`), and its own
CUTLASS kernels. cuBLASLt takes it as the number of SMs to choose a kernel for. A captured CUDA graph keeps the choice.

Thread safety: one thread issues products while it holds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tokenweave.errors import KernelError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

Switch = tuple[Callable[[], int | None], Callable[[int | None], None]]


class SmCarveout:
    """A context in which products leave `num_sms` SMs to others; one without effect where torch has no such switch."""

    def __init__(self, num_sms: int, switch: Switch | None = None) -> None:
        """`switch` reads and sets it: torch's unless given.

        Raises:
            KernelError: `num_sms` is less than 1.
        """
        if num_sms < 1:
            raise KernelError(f"got {num_sms} SMs to leave to others; expected at least 1")
        self.num_sms = num_sms
        self._switch = switch or torchs_switch()
        self._before: list[int | None] = []
        if self._switch is not None:
            read, put = self._switch
            before = read()
            with warnings.catch_warnings():  # torch warns once that it is experimental; this is said above
                warnings.simplefilter("ignore")
                put(num_sms)
            put(before)

    @property
    def is_available(self) -> bool:
        """Whether this torch has the switch."""
        return self._switch is not None

    def __enter__(self) -> Self:
        if self._switch is not None:
            read, put = self._switch
            self._before.append(read())
            put(self.num_sms)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._switch is not None:
            _, put = self._switch
            put(self._before.pop())


def torchs_switch() -> Switch | None:
    """torch's own, or None where this build has none."""
    import torch

    core: Any = torch._C
    with suppress(AttributeError):
        return core._get_sm_carveout_experimental, core._set_sm_carveout_experimental
    return None
