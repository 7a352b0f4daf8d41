"""transformers' own Llama over weights that are given: nothing is copied. Its cache is static, its attention SDPA.

Names of arguments changed in its fifth version; the model itself is asked which it has.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.gpu.findings import NotRun
from benchmarks.gpu.weights import RandomWeights
from interlace.models.config import ModelConfig
from interlace.models.weight_map import hf_places


@dataclass
class PeerCache:
    """A cache of transformers, and the next token's position, (1,) int64, advanced by every step."""

    cache: Any
    position: Tensor


class TransformersPeer:
    """The model, with the methods of `PlainLoop`."""

    def __init__(self, weights: RandomWeights, device: Device, is_compiled: bool = False) -> None:
        """`is_compiled`: the steps of decoding, as a whole.

        Raises:
            NotRun: transformers is not installed.
        """
        if find_spec("transformers") is None:
            raise NotRun("transformers is not installed: pip install transformers")
        self.is_captured = is_compiled
        self._device = device
        self._model = model_of(weights, device)
        names = inspect.signature(type(self._model).forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        inner = inspect.signature(type(self._model.model).forward).parameters
        self._takes_position = "cache_position" in names or "cache_position" in inner
        self._decode = device.compiled(self._model.forward) if is_compiled else self._model.forward

    def new_cache(self, num_seqs: int, max_len: int) -> PeerCache:
        """An empty cache. It takes its memory, and its number of sequences, from the first tokens."""
        static = importlib.import_module("transformers").StaticCache
        cache = static(config=self._model.config, max_cache_len=max_len)
        return PeerCache(cache, torch.zeros(1, dtype=torch.int64, device=self._device.kind))

    @torch.inference_mode()
    def prefill(self, ids: Tensor, cache: PeerCache) -> Tensor:
        """Logits (num_seqs, vocab) after the tokens `ids` (num_seqs, num_tokens), which are the first."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        logits = self._logits(self._model.forward, ids, cache.cache, positions)
        cache.position.fill_(ids.shape[1])
        return logits

    @torch.inference_mode()
    def decode(self, ids: Tensor, cache: PeerCache) -> Tensor:
        """Logits (num_seqs, vocab) after one more token of each, `ids` (num_seqs, 1)."""
        logits = self._logits(self._decode, ids, cache.cache, cache.position)
        cache.position.add_(1)
        return logits

    @torch.inference_mode()
    def prefill_alone(self, ids: Tensor) -> Tensor:
        """`prefill` without a cache, whose mask would keep it from attention that needs none."""
        found = self._model(input_ids=ids, use_cache=False, logits_to_keep=1)
        logits: Tensor = found.logits[:, -1]
        return logits

    def _logits(self, forward: Any, ids: Tensor, cache: Any, positions: Tensor) -> Tensor:
        more = {"cache_position": positions} if self._takes_position else {}
        found = forward(
            input_ids=ids,
            position_ids=positions[None].expand(len(ids), -1),
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: cache},
            **more,
        )
        logits: Tensor = found.logits[:, -1]
        return logits


def model_of(weights: RandomWeights, device: Device) -> Any:
    """transformers' model, whose parameters are the weights themselves."""
    transformers = importlib.import_module("transformers")
    config = config_of(weights.config)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    places = hf_places(weights.config)
    state = {places(name)[0].tensor: weights[name] for name in weights.names}
    model.load_state_dict(state, strict=True, assign=True)
    with torch.device(device.kind):  # its buffers are in no state
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model.eval()


def config_of(config: ModelConfig) -> Any:
    """The configuration by transformers' names."""
    transformers = importlib.import_module("transformers")
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
