"""interlace: the engine that serves language models over several ranks and several kinds of memory.

The top layer: it may import `tokenweave` and `emucxl`. Names are imported when first used, so that `import interlace`
and the command line start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from interlace.engine.async_llm import AsyncLLM
    from interlace.engine.chunk import StreamChunk
    from interlace.engine.config import EngineConfig
    from interlace.engine.llm import LLM
    from interlace.engine.output import CompletionOutput, EngineStats, Logprob, RequestMetrics, RequestOutput
    from interlace.engine.sampling_params import SamplingParams

_HOMES = {
    "AsyncLLM": "async_llm",
    "CompletionOutput": "output",
    "EngineConfig": "config",
    "EngineStats": "output",
    "LLM": "llm",
    "Logprob": "output",
    "RequestMetrics": "output",
    "RequestOutput": "output",
    "SamplingParams": "sampling_params",
    "StreamChunk": "chunk",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "EngineConfig",
    "EngineStats",
    "Logprob",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StreamChunk",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"interlace.engine.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
