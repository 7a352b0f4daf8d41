"""TextAssembler: a request's text as it grows, without its stop string or any beginning of one."""

from __future__ import annotations

from interlace.engine.protocols import TextDecoder


class TextAssembler:
    """Gives out text as soon as it cannot be part of a stop string.

    Invariant: `_held` is the longest end of the text so far that begins some stop string. A stop string that
    is completed later therefore begins inside it, and only `_held` plus the new text need searching.
    """

    def __init__(self, decoder: TextDecoder, stop: tuple[str, ...]) -> None:
        self._decoder = decoder
        self._stop = stop
        self._longest_start = max((len(string) for string in stop), default=1) - 1
        self._given: list[str] = []
        self._held = ""
        self.stopped_by: str | None = None

    @property
    def text(self) -> str:
        """All that was given out."""
        return "".join(self._given)

    def push(self, token_id: int) -> str:
        """The text that may be given out now; `stopped_by` tells if a stop string was completed."""
        piece = self._decoder.push(token_id)
        return self._give(self._filter(piece) if self._stop and piece else piece)

    def finish(self) -> str:
        """The rest of the text, when the request ends; a stop string that only now becomes visible counts."""
        if self.stopped_by is not None:
            return ""
        piece = self._decoder.flush()
        given = self._filter(piece) if self._stop and piece else piece
        given, self._held = given + self._held, ""
        return self._give(given)

    def _give(self, text: str) -> str:
        if text:
            self._given.append(text)
        return text

    def _filter(self, piece: str) -> str:
        pending = self._held + piece
        found = [(at, string) for string in self._stop if (at := pending.find(string)) >= 0]
        if found:
            end, self.stopped_by = min(found, key=lambda hit: hit[0])
            self._held = ""
            return pending[:end]
        lengths = range(min(self._longest_start, len(pending)), 0, -1)
        held = next((length for length in lengths if self._may_begin(pending[-length:])), 0)
        self._held = pending[len(pending) - held :]
        return pending[: len(pending) - held]

    def _may_begin(self, end: str) -> bool:
        return any(string.startswith(end) for string in self._stop)
