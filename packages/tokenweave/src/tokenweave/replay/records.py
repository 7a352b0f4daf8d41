"""Records: the calls of a captured pass, as the native library makes them again."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, Protocol

from tokenweave.native import load

RECORD_WORDS = 16  # TW_RECORD_WORDS
_WORD = 2**64


class NativeCaller(Protocol):
    """An object that calls the native library, by its `library`, and knows what statuses mean."""

    library: Any

    def raise_status(self, status: int, call: str) -> None:
        """Raises what a call that returned `status`, other than TW_OK, raises."""


@dataclass(frozen=True, slots=True)
class CallSites:
    """All by which a pass calls what is not torch: objects that call the native library, and methods of Python.

    A method is named by its owner and its name. It takes tensors and constants, and what it does to them, or returns,
    depends on nothing else that changes between two passes.
    """

    native: tuple[NativeCaller, ...] = ()
    python: tuple[tuple[object, str], ...] = ()

    def __add__(self, other: CallSites) -> CallSites:
        return CallSites(self.native + other.native, self.python + other.python)


class Record(ctypes.Structure):
    """tw_record."""

    _fields_ = [("function", c_int32), ("num_words", c_int32), ("words", c_uint64 * RECORD_WORDS)]


@dataclass(frozen=True, slots=True)
class Call:
    """A native call of a captured pass."""

    caller: NativeCaller
    number: int  # of the function
    name: str
    words: tuple[int, ...]
    kept: tuple[object, ...]  # what the words point to, as far as it is the call's own


def call_of(caller: NativeCaller, name: str, arguments: Sequence[object]) -> Call | None:
    """The call of the function `name`; None if it cannot be replayed: not in the library's list, or no words."""
    number = load().tw_replay_function(name.encode())
    words = [_word_of(argument) for argument in arguments]
    if number < 0 or len(words) > RECORD_WORDS:
        return None
    known = [word for word in words if word is not None]
    return Call(caller, number, name, tuple(known), tuple(arguments)) if len(known) == len(words) else None


def _word_of(argument: object) -> int | None:
    """An integer or an address as a word; None for what is neither."""
    if argument is None:
        return 0
    if isinstance(argument, int):
        return argument % _WORD
    if isinstance(argument, c_void_p):
        return argument.value or 0
    referred = getattr(argument, "_obj", None)  # of a byref
    return (
        ctypes.addressof(referred) if isinstance(referred, ctypes._SimpleCData | ctypes.Structure) else None
    )


def array_of(calls: Sequence[Call | None]) -> ctypes.Array[Record]:
    """The calls as tw_replay reads them; of None it makes nothing, and refuses it."""
    records = (Record * len(calls))()
    for record, call in zip(records, calls, strict=True):
        if call is None:
            record.function = -1
            continue
        record.function, record.num_words = call.number, len(call.words)
        record.words[: len(call.words)] = call.words
    return records
