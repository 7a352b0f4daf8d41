"""StreamChunk: the part of a request's output that one step made."""

from __future__ import annotations

from dataclasses import dataclass, field

from interlace.engine.output import Logprob, RequestOutput
from interlace.errors import RequestFailed


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """One step's part of a request. The texts of all its chunks, joined, are its text."""

    request_id: str
    text: str  # may be empty: a character, or the start of a stop string, is held back until it is whole
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    output: RequestOutput | None = None  # the whole result, in the last chunk
    error: RequestFailed | None = None  # why that is all, where the request failed in a step

    @property
    def finished(self) -> bool:
        return self.output is not None
