"""TokenStream: tokens to text as they arrive, holding back what may yet change.

Cost: each token is decoded a bounded number of times, whatever the tokens are.
Thread safety: none; a stream belongs to one request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

_BROKEN = "\ufffd"  # what a decoder shows for bytes that are no character, or not yet
_MOST_UNFINISHED = 3  # tokens of a character that may still come: UTF-8's longest have four bytes
_MOST_HELD = 32  # tokens after which text is shown as it is, even if no cut between characters was found
_CONTEXT = 8  # tokens of the prompt, at most, that are looked at for its last whole character


class Spelling(Protocol):
    """The part of a tokenizer that a stream uses."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...

    def is_spelled(self, token_id: int, skip_special: bool = True) -> bool: ...


class TokenStream:
    """Turns tokens into text as they come, after a prompt that is not shown.

    Invariant: the pieces pushed out, with what `flush` gives, join to what `decode` of prompt and tokens adds to
    `decode` of the prompt, wherever those spell valid UTF-8 (SentencePiece breaks a whole run of bytes for one bad
    byte in it, and what is out stays out).
    """

    def __init__(self, tokenizer: Spelling, skip_special: bool, prompt: Iterable[int] = ()) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._held: list[int] = []  # tokens whose text is not out
        self._context = self._end_of(prompt)  # those before them: they shape how the next ones are spelled
        self._shown = self._decode(self._context)

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes: "" while a character is unfinished."""
        if not self._tokenizer.is_spelled(token_id, self._skip_special):
            return ""  # it shapes nothing: kept, a row of such tokens would be decoded over and over
        self._held.append(token_id)
        text = self._spelled(self._held)
        unfinished = self._num_unfinished(text)
        if unfinished == 0:
            return self._release(len(self._held), text)
        final = len(self._held) - unfinished
        return self._release(final, self._spelled(self._held[:final])) if final else ""

    def flush(self) -> str:
        """The text still held back, at the end of the tokens."""
        return self._release(len(self._held), self._spelled(self._held))

    def _release(self, count: int, text: str) -> str:
        """Gives out `text`, that of the first `count` tokens held; they are the context of the next ones."""
        if text:
            self._context = self._held[:count]
            self._shown = self._decode(self._context)
            self._held = self._held[count:]
        elif len(self._held) >= _MOST_HELD:
            self._held = []  # a decoder that shows nothing for so many tokens drops them
        return text

    def _num_unfinished(self, text: str) -> int:
        """How many of the tokens held, from the last one back, may be a character's beginning.

        A cut inside a character breaks it on both sides: the right one is where the least is broken. What is
        before it cannot become whole any more.
        """
        count = len(self._held)
        if not text.endswith(_BROKEN):
            return 0
        if count <= _MOST_UNFINISHED:
            return count
        lengths = {last: self._length_if_cut(last) for last in range(_MOST_UNFINISHED, 0, -1)}
        best = min(lengths, key=lengths.__getitem__)  # the first of equals, which holds most
        if lengths[best] <= len(text):
            return best
        return count if count < _MOST_HELD else 0

    def _length_if_cut(self, last: int) -> int:
        """Characters that come out if the `last` tokens held are decoded apart from those before them."""
        return len(self._spelled(self._held[:-last])) + len(self._decode(self._held[-last:]))

    def _spelled(self, ids: Sequence[int]) -> str:
        """Text of `ids`, as it is after the context."""
        if not ids:
            return ""
        both = self._decode([*self._context, *ids])
        completed = self._shown.rstrip(_BROKEN)  # what is left of it if `ids` complete its last character
        for shown in (self._shown, completed):
            if both.startswith(shown):
                return both[len(shown) :]
        return self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, self._skip_special)

    def _end_of(self, prompt: Iterable[int]) -> list[int]:
        """The last tokens of `prompt` that show a text and begin with a whole character, as far as there are any.

        The character U+FFFD itself looks as what is broken does; but three bytes of it are one character, not three.
        """
        last: list[int] = []
        best, most_joined = last, -1
        for token_id in reversed(list(prompt)):
            if not self._tokenizer.is_spelled(token_id, self._skip_special):
                continue
            last = [token_id, *last]
            text = self._decode(last)
            if text and not text.startswith(_BROKEN):
                return last
            joined = len(last) - len(text)
            if joined >= most_joined:
                best, most_joined = last, joined
            if len(last) == _CONTEXT:
                break
        return best
