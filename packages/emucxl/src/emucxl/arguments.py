"""Checks of what callers pass: what they refuse says what was got, and what was expected."""

from __future__ import annotations

import os
from enum import Enum
from operator import index
from typing import Any, TypeVar

from emucxl.errors import ArgumentError, ArgumentTypeError

Member = TypeVar("Member", bound=Enum)


def natural(name: str, value: Any, bits: int = 64) -> int:
    """An integer of that many bits, without a sign."""
    try:
        number = index(value)
    except TypeError:
        raise ArgumentTypeError(f"got {name}={value!r}; expected an integer") from None
    if not 0 <= number < 1 << bits:
        raise ArgumentError(f"got {name}={value}; expected 0 to {(1 << bits) - 1}")
    return number


def number(name: str, value: Any) -> float:
    """A number, which may be infinite, and is none of the odd ones (complex, NaN)."""
    if not isinstance(value, int | float):
        raise ArgumentTypeError(f"got {name}={value!r}; expected a number")
    if value != value:
        raise ArgumentError(f"got {name}={value!r}; expected a number")
    return value


def text_bytes(name: str, value: Any) -> bytes:
    """Text without NUL, as the core takes it."""
    if not isinstance(value, str):
        raise ArgumentTypeError(f"got the {name} {value!r}; expected text")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"got the {name} {value!r}; expected text that can be encoded") from None
    if b"\0" in encoded:
        raise ArgumentError(f"got the {name} {value!r}; expected text without NUL")
    return encoded


def path_text(name: str, value: Any) -> str:
    """The path that `value` stands for: text, bytes or an os.PathLike."""
    try:
        text = os.fsdecode(value)
        os.fsencode(text)
    except TypeError:
        raise ArgumentTypeError(f"got the {name} {value!r}; expected a path") from None
    except UnicodeEncodeError:
        raise ArgumentError(f"got the {name} {value!r}; expected a path that can be encoded") from None
    if not text or "\0" in text:
        raise ArgumentError(f"got the {name} {value!r}; expected a path that is not empty, without NUL")
    return text


def member(name: str, value: Any, kind: type[Member]) -> Member:
    """The member of an enumeration that `value` is, or is the value of."""
    try:
        return kind(value)
    except ValueError:
        expected = ", ".join(f"{kind.__name__}.{each.name}" for each in kind)
        raise ArgumentError(f"got {name}={value!r}; expected {expected}") from None


def instance(name: str, value: Any, kind: Any, expected: str) -> None:
    """Refuses what is not of `kind`."""
    if not isinstance(value, kind):
        raise ArgumentTypeError(f"got the {name} {value!r}; expected {expected}")


def contents(data: Any) -> bytes:
    """A copy of the bytes of an object that speaks the buffer protocol, and is contiguous."""
    try:
        return memoryview(data).tobytes()
    except TypeError:
        raise ArgumentTypeError(f"got {data!r}; expected bytes, or an object that shares them") from None
    except (BufferError, ValueError) as error:
        raise ArgumentError(
            f"got {data!r}, which gives no bytes ({error}); expected contiguous ones"
        ) from None
