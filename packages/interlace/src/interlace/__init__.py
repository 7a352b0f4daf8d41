"""interlace: the engine that serves language models over several ranks and several kinds of memory.

The top layer: it may import `tokenweave` and `emucxl`. Names are imported when first used, so that `import interlace`
and the command line start without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emucxl.lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from interlace.engine.async_llm import AsyncLLM
    from interlace.engine.cache.traffic import TierStats
    from interlace.engine.chunk import StreamChunk
    from interlace.engine.config import EngineConfig
    from interlace.engine.llm import LLM
    from interlace.engine.output import (
        CompletionOutput,
        EngineStats,
        Logprob,
        RequestMetrics,
        RequestOutput,
    )
    from interlace.engine.sampling_params import SamplingParams

_HOMES = {
    "AsyncLLM": "engine.async_llm",
    "CompletionOutput": "engine.output",
    "EngineConfig": "engine.config",
    "EngineStats": "engine.output",
    "LLM": "engine.llm",
    "Logprob": "engine.output",
    "RequestMetrics": "engine.output",
    "RequestOutput": "engine.output",
    "SamplingParams": "engine.sampling_params",
    "StreamChunk": "engine.chunk",
    "TierStats": "engine.cache.traffic",
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
    "TierStats",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
