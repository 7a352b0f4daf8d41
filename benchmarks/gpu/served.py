"""The engine on weights that are given: one rank in this process, and requests in token ids."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.gpu.weights import RandomWeights
from interlace.engine.config import EngineConfig
from interlace.engine.engine import Engine
from interlace.engine.ranks.connect import kernels_for
from interlace.engine.ranks.group import RankGroup
from interlace.engine.ranks.runner import Runner
from interlace.engine.sampling_params import SamplingParams
from interlace.models.batch import ForwardBatch
from interlace.models.sources import LoadedModel
from tokenweave.communicators.null import NullCommunicator
from tokenweave.kernels import blocks_for

MOST_TOKENS = 16_384  # of a pass


class NoText:
    """A tokenizer for those who talk in token ids: every token is the empty text."""

    end_token_ids: tuple[int, ...] = ()

    def special_token_id(self, text: str) -> int | None:
        return None

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        return []

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return ""

    def stream(self, skip_special: bool = True, prompt: Sequence[int] = ()) -> NoText:
        return self

    def push(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""

    def apply_chat_template(
        self, messages: Any, add_generation_prompt: bool = True, **more: Any
    ) -> list[int]:
        return []


class Served:
    """An engine. Close it when done.

    Thread safety: none.
    """

    def __init__(
        self,
        device: Device,
        model: LoadedModel,
        dtype: torch.dtype,
        num_seqs: int,
        num_tokens: int,
        quantize: str = "none",
    ) -> None:
        """Room for `num_seqs` sequences at a time, and for `num_tokens` tokens of all sequences together."""
        self._device = device
        self.config = EngineConfig(
            model.name,
            device="cuda",
            dtype=str(dtype).removeprefix("torch."),
            quantize=quantize,
            max_num_seqs=num_seqs,
            max_num_batched_tokens=max(num_seqs, min(num_tokens, MOST_TOKENS)),
            num_kv_blocks=blocks_for(num_tokens) + num_seqs,
            prefix_cache=False,
        )
        communicator = NullCommunicator(kernels=kernels_for(self.config, ranks_on_host=1))
        self.ranks = RankGroup(Runner(self.config, model, communicator), NoText(), None)  # type: ignore[arg-type]
        self.engine = Engine(self.ranks, self.config)
        self._numbers = itertools.count()

    @classmethod
    def on(
        cls, device: Device, weights: RandomWeights, num_seqs: int, num_tokens: int, quantize: str = "none"
    ) -> Served:
        """The engine on weights that are given, which it packs for itself."""
        return cls(
            device, LoadedModel("random", Path(), weights), weights.dtype, num_seqs, num_tokens, quantize
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a step reads: all but the embedding."""
        decoder = self.ranks.runner.decoder
        return decoder.size_bytes - decoder.embed.size_bytes

    def logits(self, ids: Sequence[int], num_steps: int = 1) -> Tensor:
        """Logits (1 + num_steps, vocab) float32, each after a token more: of a prefill, then of steps.

        The last `num_steps` of `ids` are the tokens of the steps. No sequence may be running.
        """
        given, num_read = torch.tensor(ids, dtype=torch.int32), len(ids) - num_steps
        first = ForwardBatch.prefill(num_read, self.ranks.model_config.vocab_size)
        batches = [replace(first, token_ids=given[:num_read])]
        batches += [next_token(given[: count + 1]) for count in range(num_read, len(ids))]
        return torch.cat([self.ranks.execute(batch).to(self._device.kind, copy=True) for batch in batches])

    def begin(self, prompts: Sequence[Sequence[int]], num_steps: int) -> None:
        """Has every prompt read, up to its first token: from here on each of `num_steps` steps gives one of each."""
        params = SamplingParams(temperature=0.0, max_tokens=num_steps + len(prompts), ignore_eos=True)
        waiting = {f"request-{next(self._numbers)}": prompt for prompt in prompts}
        for name, prompt in waiting.items():
            self.engine.add_request(name, prompt, params)
        self._names = list(waiting)
        while waiting:
            for chunk in self.engine.step():
                waiting.pop(chunk.request_id, None)

    def step(self) -> None:
        """One token more of each sequence."""
        found = sum(len(chunk.token_ids) for chunk in self.engine.step())
        if found != len(self._names):
            raise ArithmeticError(f"a step gave {found} tokens; expected {len(self._names)}")

    def end(self) -> None:
        """Gives the sequences up."""
        for name in self._names:
            self.engine.abort(name)

    def prefill(self, prompt: Sequence[int]) -> None:
        """Reads a prompt, up to its first token."""
        params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        self.engine.add_request(f"request-{next(self._numbers)}", prompt, params)
        while self.engine.has_unfinished:
            self.engine.step()

    def close(self) -> None:
        self.ranks.close()


def next_token(ids: Tensor) -> ForwardBatch:
    """The last of `ids`, where all before it have been read into the first blocks."""
    at = len(ids) - 1

    def row(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    return ForwardBatch(
        token_ids=ids[-1:],
        positions=row(at),
        slots=row(at),
        query_start=row(0, 1),
        seq_lens=row(at + 1),
        block_tables=torch.arange(blocks_for(at + 1), dtype=torch.int32)[None],
        logit_rows=row(0),
        prompt_lens=row(at),
    )
