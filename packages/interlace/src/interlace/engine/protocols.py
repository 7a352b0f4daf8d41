"""Protocols: the parts of ranks and tokenizers that the engine uses. `ranks` has real ones, tests small ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from interlace.engine.cache.fetching import Chooser
    from interlace.engine.cache.traffic import PassFetch, TierTraffic
    from interlace.models.batch import ForwardBatch
    from tokenweave.communicators.device_wait import DeviceEvent
    from tokenweave.native import ThreadPool
    from tokenweave.trace import Trace

Message = Mapping[str, Any]  # {"role": ..., "content": ...}, as chat templates take them


class TextDecoder(Protocol):
    """Tokens to text, one at a time; never gives out part of a character."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class TokenizerLike(Protocol):
    """The part of a tokenizer that the engine uses."""

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text or a turn."""

    def special_token_id(self, text: str) -> int | None:
        """The special token that `text` is, if it is one."""

    def encode(self, text: str, add_special: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...

    def stream(self, skip_special: bool = True, prompt: Sequence[int] = ()) -> TextDecoder:
        """A decoder of the tokens that follow `prompt`, which shapes their text and is not shown."""

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **arguments: Any
    ) -> list[int]: ...


class ModelFacts(Protocol):
    """The part of ModelConfig that the engine looks at."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def length_kind(self, num_prompt: int) -> int:
        """A number that two prompts have in common if their tokens are rotated alike, position by position."""


class Ranks(Protocol):
    """Ranks that are up and run the model, with its tokenizer and configuration."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""

    def execute(self, batch: ForwardBatch, sampled: Tensor | None = None) -> Tensor:
        """Logits of the rows that `batch` asks for, (num_logits, vocab_size) float32 on `device`.

        On a device this need not wait, and a batch may name tokens by the row of the last pass that they were sampled
        in (see `FedTokens`): then `sampled` has them, (num_rows,) on the device.
        """

    @property
    def tier_capacities(self) -> Sequence[int]:
        """Blocks that each tier below the KV cache holds, from the top."""

    @property
    def fetch_chooser(self) -> Chooser:
        """Says how much of what a tier has of a prompt is fetched."""

    @property
    def fetched(self) -> PassFetch:
        """How the fetches of the last batch went, on this rank, and the blocks that some rank could not fetch."""

    @property
    def tier_traffic(self) -> Sequence[TierTraffic]:
        """The bytes that went between this rank's KV cache and each tier."""

    @property
    def is_storing(self) -> bool:
        """Whether so many blocks are on their way to tiers that no more should be sent for now."""

    @property
    def device(self) -> torch.device | None:
        """Where the logits are and are sampled; None: the host, by `pool` or by the reference."""

    def wait_for(self, event: DeviceEvent) -> None:
        """Waits for an event of `device`, as long as the ranks are there and answer."""

    @property
    def pool(self) -> ThreadPool | None:
        """The native workers here, which are idle between two batches; None where there are none."""

    @property
    def tokenizer(self) -> TokenizerLike: ...

    @property
    def model_config(self) -> ModelFacts: ...

    @property
    def max_model_len(self) -> int:
        """The longest sequence served, in tokens."""

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """The sampling that the model's files recommend, by the names of SamplingParams, unchecked."""

    def describe(self) -> dict[str, object]: ...

    def start_trace(self) -> None: ...

    def end_trace(self) -> Trace: ...

    def close(self) -> None: ...
