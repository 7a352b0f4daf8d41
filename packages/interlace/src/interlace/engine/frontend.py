"""FrontEnd: what LLM and AsyncLLM share. The ranks, the engine over them, and how they are built and described."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Unpack

from interlace.engine.config import EngineConfig, EngineOptions
from interlace.engine.engine import Engine
from interlace.engine.output import EngineStats
from interlace.engine.ownership import Owner
from interlace.engine.prompts import one_for_each
from interlace.engine.protocols import RankGroup, Tokenizer
from interlace.engine.sampling_params import SamplingParams
from interlace.errors import ConfigError, EngineError, SamplingError


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

    @cached_property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """What SamplingParams the model's files recommend; nothing with `generation_config="none"`.

        A request without parameters has these. Others have their own alone:
        `SamplingParams(**{**llm.sampling_defaults, "max_tokens": 100})` joins the two.

        Raises:
            ConfigError: a value there is out of range.
        """
        given = self._ranks.sampling_defaults if self.config.generation_config == "auto" else {}
        try:
            SamplingParams(**given)
        except SamplingError as error:
            raise ConfigError(
                f"{self.config.model}: its recommended sampling cannot be used: {error}. Leave it out "
                f"(generation_config='none', --generation-config none) or correct its generation_config.json"
            ) from error
        return dict(given)

    def _params_for_each(self, given: Any, num_prompts: int) -> list[SamplingParams]:
        """The parameters of each prompt; where none are given, the model's own."""
        if given is None:
            given = SamplingParams(**self.sampling_defaults)
        return one_for_each(given, num_prompts)

    def stats(self) -> EngineStats:
        """The engine as it is now: requests, blocks, rates, totals. Any thread may ask."""
        return self._engine.stats()

    def _closed_error(self) -> EngineError:
        return EngineError(f"this {type(self).__name__} is closed; make a new one")


def _start(config: EngineConfig) -> RankGroup:
    from interlace.engine.ranks.launch import start

    return start(config)
