"""Standard input, output and error, as whoever starts a command leaves them: closed, full, or unable to carry a letter.

`prepare` comes first in a process. From then on
- descriptors 0 to 2 are taken, so that no file that is opened later is mistaken for a standard stream;
- a write to standard output that fails raises OutputError, or ReaderGone where a pipe's reader has gone;
- a letter that standard output cannot encode is written as an escape, and nothing is lost;
- standard error never raises: there is nowhere left to say so.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Any

# A file that refuses what its stream is for, with EBADF, as a closed descriptor would.
_STAND_INS = ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))


class StreamError(Exception):
    """A standard stream cannot be used."""


class InputError(StreamError):
    """Standard input holds something that is not text."""


class OutputError(StreamError):
    """Standard output takes no more."""


class ReaderGone(Exception):
    """The program that reads standard output has ended, as `head` does when it has enough."""


def prepare() -> None:
    """Make the three streams of this process fit for use, whatever it was started with."""
    for fd, flags in _STAND_INS:
        _occupy(fd, flags)
    if sys.stdin is None or not hasattr(sys.stdin, "reconfigure"):
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    # Python's own answer to a locale that says nothing ("C") is UTF-8, unless it is told not to give it.
    sys.stdin.reconfigure(encoding=_or_utf8(sys.stdin.encoding), errors="strict")
    sys.stdout = _wrap(_Output(1, "wb", closefd=False), sys.stdout)
    sys.stderr = _wrap(_Silent(2, "wb", closefd=False), sys.stderr, line_buffering=True)


def discard_output() -> None:
    """Discards text that is still on its way to standard output: the end of the process would try to write it again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    sys.stdout.flush()


def read_text() -> str:
    """All of standard input.

    Raises:
        InputError: it is not text in the encoding of the locale.
        StreamError: it is closed, or cannot be read.
    """
    return _text_of(_read(sys.stdin.buffer.read))


def read_line() -> str:
    """The next line. One that is no text is taken away: the line after it can be read.

    Raises:
        EOFError: there is none.
        InputError, StreamError: as for `read_text`.
    """
    line = _read(sys.stdin.buffer.readline)
    if not line:
        raise EOFError
    return _text_of(line)


def can_write(text: str) -> bool:
    """Whether standard output has every letter of `text`."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def argument_text(argument: str) -> str:
    """An argument as text: UTF-8 where the locale could not read it.

    Raises:
        InputError: its bytes are no text.
    """
    try:
        argument.encode()
    except UnicodeEncodeError:
        data = argument.encode(sys.getfilesystemencoding(), "surrogateescape")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise not_text(error, "an argument") from None
    return argument


def not_text(error: UnicodeDecodeError, source: str = "standard input") -> InputError:
    """The error of bytes that cannot be decoded."""
    return InputError(
        f"{source} has the byte 0x{error.object[error.start]:02x} at position {error.start}, which is no "
        f"{error.encoding}; expected text in {error.encoding}: convert it, say with `iconv -f latin1 -t utf-8`"
    )


class _Output(io.FileIO):
    """Standard output."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as error:
            raise OutputError(
                f"cannot write to standard output: {error.strerror}; expected a file, a pipe or a terminal with room"
            ) from error


class _Silent(io.FileIO):
    """Standard error."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _occupy(fd: int, flags: int) -> None:
    try:
        os.fstat(fd)
    except OSError:
        taken = os.open(os.devnull, flags)
        if taken != fd:
            os.dup2(taken, fd)
            os.close(taken)
        os.set_inheritable(fd, True)


def _wrap(raw: io.FileIO, before: Any, line_buffering: bool = False) -> io.TextIOWrapper:
    """A stream over `raw` in the encoding that the one `before` had."""
    encoding = before.encoding if before is not None else "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=line_buffering or raw.isatty(),
        write_through=getattr(before, "write_through", False),
    )


def _or_utf8(encoding: str) -> str:
    return "utf-8" if codecs.lookup(encoding).name == "ascii" else encoding


def _read(call: Any) -> bytes:
    try:
        found: bytes = call()
    except OSError as error:
        raise StreamError(
            f"cannot read standard input: {error.strerror}; expected an open file or pipe"
        ) from error
    return found


def _text_of(data: bytes) -> str:
    try:
        text = data.decode(sys.stdin.encoding)
    except UnicodeDecodeError as error:
        raise not_text(error) from None
    return text.replace("\r\n", "\n")
