"""CTAs that hold SMs while something else is timed beside them."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.gpu.device import Call, Device, Measure

BEGIN_S = 0.5e-3  # the device is idle: by then every CTA has begun, which is checked
TIMEOUT_NS = 200_000_000
WARPS = 32  # as the fused kernel at hidden size 8192


class Occupier:
    """Times calls beside `num_ctas` CTAs of `WARPS` warps, which do nothing but stay."""

    def __init__(self, device: Device, num_ctas: int) -> None:
        self._device, self._num_ctas = device, num_ctas
        room = max(num_ctas, 1)
        self._stop = torch.zeros(1, dtype=torch.int32, device=device.kind)
        self._began_ns = torch.zeros(room, dtype=torch.int64, device=device.kind)
        self._was_told = torch.zeros(room, dtype=torch.int32, device=device.kind)
        self._now_ns = torch.zeros(1, dtype=torch.int64, device=device.kind)
        cuda: Any = torch.cuda
        self._side = cuda.Stream(priority=-1) if device.kind == "cuda" else None
        if num_ctas:  # compiled and loaded now: later the CTAs would have to stay for so long
            self._stop.fill_(1)
            self._launch()
            self._stamp()

    def beside(self, call: Call, calls: int) -> Measure:
        """Times `call`, worth `calls` calls, while the CTAs are there.

        A sample raises ArithmeticError where they were not there from before its beginning until after its end.
        """
        measure = self._device.timed(call, calls)
        if self._num_ctas == 0:
            return measure
        return lambda: self._sample(measure)

    def _sample(self, measure: Measure) -> float:
        self._device.synchronize()
        self._stop.zero_()
        self._was_told.zero_()
        self._begin()
        self._stamp()
        found = measure()
        self._stop.fill_(1)
        self._end()
        self._device.synchronize()
        self.check()
        return found

    def _begin(self) -> None:
        if self._side is None:  # launched here, they would never return
            return
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            self._launch()
        time.sleep(BEGIN_S)

    def _end(self) -> None:
        if self._side is None:
            self._launch()
            self._began_ns.zero_()  # they came after it, on one thread

    def _launch(self) -> None:
        from benchmarks.gpu.standins import occupy_kernel

        occupy_kernel[(self._num_ctas,)](
            self._stop, self._began_ns, self._was_told, TIMEOUT_NS, num_warps=WARPS
        )

    def _stamp(self) -> None:
        from benchmarks.gpu.standins import stamp_kernel

        stamp_kernel[(1,)](self._now_ns)

    def check(self) -> None:
        """Raises ArithmeticError unless every CTA was there all the time."""
        if not bool((self._was_told == 1).all()):
            raise ArithmeticError("CTAs that were to stay beside what was timed did not stay to its end")
        if not bool((self._began_ns < self._now_ns).all()):
            raise ArithmeticError("CTAs that were to stay beside what was timed came after its beginning")
