"""Hugging Face transformers: a static batch, a growing KV cache, SDPA attention, logits of the last token only."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .protocol import Operation, TokenRecorder


class HfSystem:
    """One model in one dtype. `forward` is called directly: `generate` adds work per token that serves no one here."""

    def load(
        self, model: str, dtype: str, threads: int, is_compiled: bool = False, device: str = "cpu"
    ) -> dict[str, Any]:
        """Read the model (a directory) and keep it in `dtype` on `device`; compiled once, for shapes that change."""
        torch.set_num_threads(threads)
        options = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
        loaded = _transformers().AutoModelForCausalLM.from_pretrained(model, **options).to(device).eval()
        self._device = device
        self._forward = torch.compile(loaded.forward, dynamic=True) if is_compiled else loaded.forward
        return {"versions": {name: version(name) for name in ("transformers", "torch")}}

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_tokens: int, margins: bool = False) -> dict[str, Any]:
        """Greedy tokens; with `margins` also how far the best logit was above the next, per token.

        Prompts must be of one length: a static batch pads nothing.
        """
        recorder = TokenRecorder(len(prompts))
        ids, cache, gaps = torch.tensor(prompts, device=self._device), None, []
        for _ in range(max_tokens):
            out = self._forward(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, cache = out.logits[:, -1].float(), out.past_key_values  # (batch, vocab)
            ids = logits.argmax(-1, keepdim=True)
            recorder.add_step(ids[:, 0].tolist())
            if margins:
                best = logits.topk(2).values
                gaps.append((best[:, 0] - best[:, 1]).tolist())
        return recorder.result() | (
            {"margins": [list(row) for row in zip(*gaps, strict=True)]} if margins else {}
        )

    def export(self, model: str, directory: str) -> dict[str, Any]:
        """Write a GGUF model as a Hugging Face directory in float32, its quantised weights expanded.

        transformers itself would run them packed, in kernels of its own: not the float32 model that others run.
        """
        transformers, path = _transformers(), Path(model)
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        packed = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        _plain(packed).save_pretrained(directory)
        transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(directory)
        return {"directory": directory}


def _plain(model: Any) -> Any:
    """The same weights in a model that does not remember being quantised: transformers refuses to write that one."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    return plain


def _transformers() -> Any:
    return importlib.import_module("transformers")


def operations() -> dict[str, Operation]:
    """The requests that the worker answers, by name."""
    system = HfSystem()
    return {"load": system.load, "generate": system.generate, "export": system.export}
