"""CallList: what one thread does in a captured pass, in order. Native calls next to each other are made in one call.

Thread safety: one `run` at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_char, c_double, c_int64, sizeof
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from tokenweave.execute import Handler, Observer
from tokenweave.native import load
from tokenweave.ops import Operation
from tokenweave.plan import Step
from tokenweave.replay.records import Call, Record, array_of


@dataclass(frozen=True, slots=True)
class PythonCall:
    """A call of a captured pass that Python makes: of a collective that is not native, say."""

    method: Callable[..., Tensor | None]
    arguments: tuple[object, ...]
    out: Tensor | None  # where later calls look for what it returns

    def run(self, handlers: Mapping[Operation, Handler]) -> None:
        returned = self.method(*self.arguments)
        if self.out is not None and returned is not None:
            self.out.copy_(returned)


@dataclass(frozen=True, slots=True)
class StepCall:
    """A step that is not captured: the handler of the pass that is run takes it, where there is one."""

    step: Step

    def run(self, handlers: Mapping[Operation, Handler]) -> None:
        if self.step.op in handlers:
            handlers[self.step.op](self.step)


AnyCall = Call | PythonCall | StepCall


@dataclass(frozen=True, slots=True)
class Span:
    """The calls of a step: [start, stop) of a list."""

    step: Step
    start: int
    stop: int


class CallList:
    """Calls, and which of them are a step's."""

    def __init__(self, calls: Sequence[AnyCall], spans: Sequence[Span]) -> None:
        self._calls, self._spans = tuple(calls), tuple(spans)
        self._records = array_of([call if isinstance(call, Call) else None for call in calls])
        self._times = (c_double * (len(calls) + 1))()
        self._stretches = tuple(_stretches(self._calls))

    def __len__(self) -> int:
        return len(self._calls)

    def run(self, handlers: Mapping[Operation, Handler], is_timed: bool = False) -> None:
        """Makes all calls; the handlers are those of steps that are not captured.

        Raises:
            What the call that failed raises in an ordinary pass. Nothing was called behind it.
        """
        for start, stop in self._stretches:
            call = self._calls[start]
            if isinstance(call, Call):
                self._replay(start, stop, is_timed)
                continue
            self._times[start] = time.perf_counter()
            call.run(handlers)
            self._times[stop] = time.perf_counter()

    def tell(self, observe: Observer, handlers: Mapping[Operation, Handler]) -> None:
        """Tells when the steps of the last run that was timed began and ended."""
        for span in self._spans:
            call = self._calls[span.start] if span.start < len(self._calls) else None
            if not isinstance(call, StepCall) or span.step.op in handlers:
                observe(span.step, self._times[span.start], self._times[span.stop])

    def _replay(self, start: int, stop: int, is_timed: bool) -> None:
        done = c_int64()
        times = byref(self._times, start * sizeof(c_double)) if is_timed else None
        records = byref(self._records, start * sizeof(Record))
        status = load().tw_replay(records, stop - start, times, byref(done))
        if status:
            failed = self._calls[start + done.value]
            assert isinstance(failed, Call)
            failed.caller.raise_status(status, failed.name.removeprefix("tw_"))


def at_its_address(tensor: Tensor) -> Tensor:
    """A tensor of the same bytes, contiguous ones, that does not own them: as native calls know it."""
    if not tensor.numel():
        return tensor
    memory = (c_char * tensor.nbytes).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


def _stretches(calls: Sequence[AnyCall]) -> list[tuple[int, int]]:
    """Native calls next to each other, and each other call alone: [start, stop) of each."""
    stretches: list[tuple[int, int]] = []
    for is_native, places in groupby(range(len(calls)), lambda at: isinstance(calls[at], Call)):
        found = list(places)
        stretches += [(found[0], found[-1] + 1)] if is_native else [(at, at + 1) for at in found]
    return stretches
