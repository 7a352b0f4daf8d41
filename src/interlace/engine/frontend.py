"""FrontEnd: what LLM and AsyncLLM share. The ranks, the engine over them, and how they are built and described."""

from __future__ import annotations

from typing import Unpack

from interlace.engine.config import EngineConfig, EngineOptions
from interlace.engine.engine import Engine
from interlace.engine.output import EngineStats
from interlace.engine.ownership import Owner
from interlace.engine.protocols import RankGroup, Tokenizer
from interlace.errors import EngineError


class FrontEnd:
    """An engine of one's own."""

    def __init__(
        self, model: str, *, ranks: RankGroup | None = None, **options: Unpack[EngineOptions]
    ) -> None:
        """Starts the ranks and loads `model` (a path, a hub id or an alias); EngineConfig describes the options.

        `ranks` that are up already are used instead of starting any.

        Raises:
            EngineError: a bad option, or ranks that cannot be started.
            ModelError: the model cannot be found or read.
        """
        self._owner = Owner(type(self).__name__)
        self.config = EngineConfig.from_options(model, options)
        self._ranks = ranks if ranks is not None else _start(self.config)
        self._engine = Engine(self._ranks, self.config)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._ranks.tokenizer

    @property
    def max_model_len(self) -> int:
        """The longest sequence served, in tokens of prompt and output."""
        return self._ranks.max_model_len

    def stats(self) -> EngineStats:
        """The engine as it is now: requests, blocks, rates, totals. Any thread may ask."""
        return self._engine.stats()

    def _closed_error(self) -> EngineError:
        return EngineError(f"this {type(self).__name__} is closed; make a new one")


def _start(config: EngineConfig) -> RankGroup:
    from interlace.engine.launch import start

    return start(config)
