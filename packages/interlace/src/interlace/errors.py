"""Errors of interlace.

InterlaceError
├── ModelError                  a model could not be found, read or understood
│   ├── ModelNotFound           no such path, alias or hub id
│   ├── ConfigError             unknown architecture, unsupported or contradicting values
│   ├── CorruptFile             a weight file is truncated or damaged
│   ├── ShapeMismatch           a tensor's shape is not what the configuration calls for
│   └── TokenizerError          the tokenizer or chat template cannot be read or used
├── EngineError                 the engine could not be built or run
│   ├── CacheTooSmall           the KV cache cannot hold what was asked for
│   └── RankFailed              a rank of the job died; `.rank` names it
├── RequestError                a request that cannot be served
│   ├── PromptTooLong           the prompt does not fit the context
│   ├── RequestFailed           a request that had been taken failed in a step; the others go on
│   └── SamplingError           a sampling parameter is out of range
├── BlockTraceError             a block trace cannot be read, or a cache that it should run through makes no sense
└── BenchError                  a benchmark cannot be run, or a system in it produced something wrong
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interlace.engine.output import RequestOutput


class InterlaceError(Exception):
    """Base of every error that interlace raises on purpose."""


class ModelError(InterlaceError):
    """A model could not be found, read or understood."""


class ModelNotFound(ModelError):
    """No such path, alias or hub id."""


class ConfigError(ModelError):
    """Unknown architecture, unsupported or contradicting values."""


class CorruptFile(ModelError):
    """A weight file is truncated or damaged."""


class ShapeMismatch(ModelError):
    """A tensor's shape is not what the configuration calls for."""


class TokenizerError(ModelError):
    """The tokenizer or chat template cannot be read or used."""


class EngineError(InterlaceError):
    """The engine could not be built or run."""


class CacheTooSmall(EngineError):
    """The KV cache cannot hold what was asked for."""


class RankFailed(EngineError):
    """A rank of the job died."""

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


class RequestError(InterlaceError):
    """A request that cannot be served."""


class PromptTooLong(RequestError):
    """The prompt does not fit the context."""


class RequestFailed(RequestError):
    """A request that had been taken failed in a step. `outputs` has what its call's requests came to, it included."""

    def __init__(self, message: str, outputs: Sequence[RequestOutput] = ()) -> None:
        super().__init__(message)
        self.outputs = list(outputs)


class SamplingError(RequestError):
    """A sampling parameter is out of range."""


class BlockTraceError(InterlaceError):
    """A block trace cannot be read, or a cache that it should run through makes no sense."""


class BenchError(InterlaceError):
    """A benchmark cannot be run, or a system in it produced something wrong."""
