"""Recorder: writes down the calls of a pass while the pass runs as it always does.

Two watchers see to it that a capture leaves nothing out. The library that kernels and communicators call is replaced by
one that notes each call. And torch tells of every operation that is carried out meanwhile: a new tensor gets memory of
the captured passes' own, views are let through, the few operations that a native function stands for are noted as
calls of it, and any other refuses the capture. So what can be replayed is found out, never guessed.

Methods that are named beforehand, of communicators that meet in Python, are noted as calls that Python makes; what they
do inside is theirs. Their tensors are known by their addresses, as in native calls, and what they return is copied to
memory of the captured passes' own.

Not seen is what goes round both: a tensor made of a list or of a numpy array. Handlers make none.

Thread safety: none; the calls of one thread are recorded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from tokenweave.kernels.calls import DTYPE_CODE
from tokenweave.native import check_status, load
from tokenweave.replay.calls import PythonCall, at_its_address
from tokenweave.replay.memory import PassMemory
from tokenweave.replay.records import Call, CallSites, NativeCaller, call_of

aten = torch.ops.aten
NEW = frozenset({aten.empty.memory_format, aten.new_empty.default, aten.empty_like.default})
NEW_ZEROS = frozenset({aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default})


class _Torch:
    """The native functions that stand for operations of torch in a replay."""

    def __init__(self) -> None:
        self.library = load()

    def raise_status(self, status: int, call: str) -> None:
        check_status(status, call)


class Recorder:
    """The calls so far, in order, or why they are not all."""

    def __init__(self, memory: PassMemory) -> None:
        memory.begin()
        self.calls: list[Call | PythonCall] = []
        self.refusal: str | None = None  # what cannot be replayed
        self._is_aside = False  # inside a call that Python makes
        self._memory = memory
        self._torch = _Torch()

    @contextmanager
    def recording(self, sites: CallSites) -> Iterator[None]:
        """Notes what this thread does inside, by way of `sites` and of torch."""
        with ExitStack() as stack:
            for caller in {id(caller): caller for caller in sites.native}.values():
                stack.callback(setattr, caller, "library", caller.library)
                caller.library = _NotingLibrary(self, caller)
            for owner, name in sites.python:
                method = getattr(owner, name)
                setattr(owner, name, self._noting(method))
                stack.callback(delattr, owner, name)  # which uncovers the class's
            stack.enter_context(_TorchWatcher(self))
            yield

    def note(self, caller: NativeCaller, name: str, arguments: Sequence[object]) -> None:
        """A call was made."""
        if self._is_aside:
            return
        call = call_of(caller, name, arguments)
        if call is None:
            self.refuse(name)
        else:
            self.calls.append(call)

    def _noting(self, method: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
        """`method`, noted as a call that Python makes each time that it is called."""

        def call(*arguments: object) -> Tensor | None:
            if self._is_aside:
                return method(*arguments)
            self._is_aside = True
            try:
                returned = method(*arguments)
                out = None if returned is None else self._memory.like(returned).copy_(returned)
            finally:
                self._is_aside = False
            self._note_python(method, arguments, out)
            return out

        return call

    def _note_python(
        self, method: Callable[..., Tensor | None], arguments: Sequence[object], out: Tensor | None
    ) -> None:
        tensors = [each for each in (*arguments, out) if isinstance(each, Tensor)]
        if not all(tensor.is_contiguous() and tensor.is_cpu for tensor in tensors):
            self.refuse(method.__name__)
            return
        held = (at_its_address(each) if isinstance(each, Tensor) else each for each in arguments)
        self.calls.append(PythonCall(method, tuple(held), None if out is None else at_its_address(out)))

    def refuse(self, what: str) -> None:
        """The first refusal is the one that is told."""
        self.refusal = self.refusal or what

    def see(self, operation: OpOverload, arguments: Sequence[Any], result: Any) -> Any:
        """Torch carried out `operation`. Returns the result that its caller gets."""
        if self._is_aside:
            return result
        if operation in NEW | NEW_ZEROS and result.is_contiguous() and result.is_cpu:
            given = self._memory.like(result)
            if operation in NEW_ZEROS:
                given.zero_()
                self.note(self._torch, "tw_set_zero", (given.data_ptr(), given.nbytes))
            return given
        if operation is aten.copy_.default and _is_plain_copy(*arguments[:2]):
            to, source = arguments[:2]
            self.note(self._torch, "tw_copy", (to.data_ptr(), source.data_ptr(), to.nbytes))
        elif operation is aten.mul_.Tensor and _is_scaling(*arguments[:2]):
            values, factor = arguments[:2]
            self._note_scaling(values, float(factor))
        elif not operation.is_view or operation is aten.lift_fresh.default:
            self.refuse(f"torch's {operation}")
        return result

    def _note_scaling(self, values: Tensor, factor: float) -> None:
        held = ctypes.byref(ctypes.c_float(factor))
        arguments = (values.data_ptr(), values.numel(), held, DTYPE_CODE[values.dtype])
        self.note(self._torch, "tw_scale", arguments)


def _is_plain_copy(to: Tensor, source: Tensor) -> bool:
    """Whether bytes are copied as they are, one row of them."""
    return (
        (to.dtype, to.shape) == (source.dtype, source.shape)
        and to.is_contiguous()
        and source.is_contiguous()
        and to.is_cpu
        and source.is_cpu
    )


def _is_scaling(values: Tensor, factor: object) -> bool:
    return isinstance(factor, int | float) and values.dtype in DTYPE_CODE and values.is_contiguous()


class _NotingLibrary:
    """A library that has each call of its functions noted once it is made."""

    def __init__(self, recorder: Recorder, caller: NativeCaller) -> None:
        self._recorder, self._caller, self._library = recorder, caller, caller.library

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)

        def call(*arguments: object) -> Any:
            returned = function(*arguments)
            self._recorder.note(self._caller, name, arguments)
            return returned

        return call


class _TorchWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells the recorder of every operation of torch that this thread carries out."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler for that: seconds, for what never compiles."""
        return False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        return self._recorder.see(func, args, result) if self._recorder.refusal is None else result
