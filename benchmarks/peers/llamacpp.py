"""llama.cpp through llama-cpp-python's C interface: a GGUF file as it is stored, batched decoding of every sequence."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from .protocol import Operation, TokenRecorder

Entry = tuple[int, int, int, bool]  # token, position, sequence, wants logits
BATCH = 2048


class LlamaCppSystem:
    """One model; a context per shape, made before the clock starts."""

    def load(self, model: str, threads: int) -> dict[str, Any]:
        """Map the file."""
        self._lib: Any = importlib.import_module("llama_cpp")
        self._threads = threads
        self._lib.llama_backend_init()
        self._model = self._lib.llama_model_load_from_file(
            model.encode(), self._lib.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {model}")
        self._vocab_size = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))
        self._shape = (0, 0)
        self._context: Any = None
        self._batch: Any = None
        return {"versions": {"llama-cpp-python": version("llama_cpp_python")}}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        """Greedy tokens: all prompts first, then one token of every sequence per step."""
        self._make_context(len(prompts), max(map(len, prompts)) + max_tokens)
        recorder = TokenRecorder(len(prompts))
        tokens = self._prefill(prompts)
        recorder.add_step(tokens)
        for step in range(max_tokens - 1):
            entries = [(t, len(prompts[s]) + step, s, True) for s, t in enumerate(tokens)]
            tokens = [token for _, token in self._decode(entries)]
            recorder.add_step(tokens)
        return recorder.result()

    def score(self, window: list[int]) -> dict[str, Any]:
        """How little a window of at most BATCH tokens was expected: the sum over all but the first, in nats."""
        self._make_context(1, len(window))
        self._run([(token, position, 0, True) for position, token in enumerate(window)])
        return {"nll": sum(self._surprise(row, token) for row, token in enumerate(window[1:]))}

    def _surprise(self, row: int, token: int) -> float:
        logits = self._logits(row).astype(np.float64)
        top = logits.max()
        return float(top + np.log(np.exp(logits - top).sum()) - logits[token])

    def _prefill(self, prompts: list[list[int]]) -> list[int]:
        entries = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        chunks = (entries[start : start + BATCH] for start in range(0, len(entries), BATCH))
        return [token for _, token in sorted(pair for chunk in chunks for pair in self._decode(chunk))]

    def _decode(self, entries: Sequence[Entry]) -> list[tuple[int, int]]:
        """Run one batch; (sequence, greedy token) wherever logits were wanted."""
        self._run(entries)
        return [(entry[2], int(self._logits(row).argmax())) for row, entry in enumerate(entries) if entry[3]]

    def _run(self, entries: Sequence[Entry]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for row, (token, position, sequence, wants_logits) in enumerate(entries):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = wants_logits
        status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status} for {len(entries)} tokens; expected 0")

    def _logits(self, row: int) -> Any:
        logits = self._lib.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(logits, shape=(self._vocab_size,))

    def _make_context(self, num_sequences: int, length: int) -> None:
        if self._shape == (num_sequences, length):
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
            return
        if self._context:
            self._lib.llama_free(self._context)
            self._lib.llama_batch_free(self._batch)
        params = self._lib.llama_context_default_params()
        per_sequence = -(-length // 256) * 256  # llama.cpp pads a sequence's cache to this
        params.n_ctx, params.n_seq_max = num_sequences * per_sequence, num_sequences
        params.n_batch, params.n_threads, params.n_threads_batch = BATCH, self._threads, self._threads
        self._context = self._lib.llama_init_from_model(self._model, params)
        self._batch = self._lib.llama_batch_init(BATCH, 0, 1)
        self._shape = (num_sequences, length)


def operations() -> dict[str, Operation]:
    """The requests that the worker answers, by name."""
    system = LlamaCppSystem()
    return {"load": system.load, "generate": system.generate, "score": system.score}
