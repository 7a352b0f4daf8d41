"""The recorder: an engine's own block trace, in the form that `block_trace` reads. It has no text, and no hash of one.

Blocks come with their names, which are hashes; a line has numbers, given out in the order in which names are new to
this recording. So equal numbers say that two prompts of the recording are alike up to there, and no more.

Invariants: the file has whole lines alone, in the order of arrival. `output_length` is 0 until its request has ended:
the line leaves room for it, so no line waits in memory for the end of an earlier request.

Thread safety: one thread records; any may close. What cannot be written ends the recording with a warning. It is never
an error of the request.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from interlace.errors import BlockTraceError

MOST_NAMES = 2**20  # that are told apart from new ones
_WIDTH = 10  # digits of an output length
_log = logging.getLogger("interlace")


class BlockTraceRecorder:
    """Requests of one engine, a line each, from `begin` on."""

    def __init__(self, path: str | Path, most_names: int = MOST_NAMES) -> None:
        """Makes the file `path`, or empties it.

        most_names: the blocks of so many names are known again, those that were asked for last; a block that was
        forgotten gets another number. An LRU cache of no more blocks would have forgotten it too.

        Raises:
            BlockTraceError: it cannot be written.
        """
        self._path = Path(path)
        self._file = _opened(self._path, "w")
        self._most_names = most_names
        self._numbers: OrderedDict[bytes, int] = OrderedDict()  # by name, the one asked for longest ago first
        self._num_names = 0
        self._num_bytes = 0  # of whole lines
        self._unfinished: dict[str, int] = {}  # where the output length of a request is to be written
        self._num_requests = 0
        self._start_s = time.perf_counter()

    def begin(self, request_id: str, num_prompt: int, names: Sequence[bytes]) -> None:
        """Records the arrival of a prompt of `num_prompt` tokens, whose full blocks have these names."""
        if self._file.closed:
            return
        elapsed_ms = int(1e3 * (time.perf_counter() - self._start_s))
        head = f'{{"timestamp": {elapsed_ms}, "input_length": {num_prompt}, "output_length": '
        line = f'{head}{0:>{_WIDTH}}, "hash_ids": {self._numbers_of(names)}}}\n'
        if self._write(line, self._num_bytes):
            self._unfinished[request_id] = self._num_bytes + len(head)
            self._num_bytes += len(line)
            self._num_requests += 1

    def end(self, request_id: str, num_output: int) -> None:
        """Records that the request has ended, with so many tokens."""
        place = self._unfinished.pop(request_id, None)
        if place is not None and not self._file.closed:
            self._write(f"{num_output:>{_WIDTH}}", place)

    def close(self) -> None:
        """Ends the recording. Requests that have not ended keep an output length of 0."""
        self._file.close()

    def _numbers_of(self, names: Sequence[bytes]) -> list[int]:
        known, numbers = self._numbers, []
        for name in names:
            number = known.get(name)
            if number is None:
                number, self._num_names = self._num_names, self._num_names + 1
            numbers.append(number)
        for name, number in zip(reversed(names), reversed(numbers), strict=True):
            known[name] = (
                number  # the first block is the most recent: no block is forgotten before those behind it
            )
            known.move_to_end(name)
        for _ in range(len(known) - self._most_names):
            known.popitem(last=False)
        return numbers

    def _write(self, text: str, place: int) -> bool:
        """Writes `text` at `place` of the file; where that fails, the recording ends with the lines before."""
        data = text.encode("ascii")
        try:
            written = os.pwrite(self._file.fileno(), data, place)
            if written == len(data):
                return True
            reason = "the disk is full"
        except (OSError, ValueError) as error:  # ValueError: another thread has closed it
            reason = error.strerror or str(error) if isinstance(error, OSError) else "it was closed"
        _log.warning(
            "recording block traces to %s has ended after %d requests: %s. The engine goes on",
            self._path, self._num_requests, reason,
        )  # fmt: skip
        with suppress(OSError, ValueError):
            self._file.truncate(self._num_bytes)
        with suppress(OSError):
            self._file.close()
        return False


def check_recordable(path: str | Path) -> None:
    """Makes the file `path`, if it is not there. Raises BlockTraceError where it cannot be written."""
    _opened(Path(path), "a").close()


def _opened(path: Path, mode: str) -> FileIO:
    try:
        if path.is_fifo():  # to open one would wait for a reader
            raise OSError(errno.ESPIPE, "it is a pipe; expected a file")
        return FileIO(path, mode)
    except OSError as error:
        raise BlockTraceError(f"the block trace {path} cannot be recorded: {error.strerror}") from error
