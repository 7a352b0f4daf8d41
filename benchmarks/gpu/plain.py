"""A plain loop over a Llama, as gpt-fast has it: a static cache, compiled blocks, the steps of decoding in a graph.

It is what a careful user of torch writes for one model and one length, and it does no more than that: no requests, no
pages, no sampling but the largest logit. All sequences have the same length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from benchmarks.gpu.device import Device
from benchmarks.gpu.weights import RandomWeights
from interlace.models.config import ModelConfig


@dataclass(frozen=True)
class Heads:
    """The numbers that a block is compiled for."""

    num: int
    num_kv: int
    dim: int
    eps: float


@dataclass
class StaticCache:
    """Keys and values of each layer, (num_seqs, kv_heads, max_len, head_dim), and the next token's position."""

    keys: list[Tensor]
    values: list[Tensor]
    position: Tensor  # (1,) int64, advanced by every step


class PlainLoop:
    """The model. `prefill` begins the sequences of a cache, `decode` continues them by a token."""

    is_captured = True

    def __init__(self, weights: RandomWeights, device: Device, is_compiled: bool = True) -> None:
        self._device, self._weights, self._config = device, weights, weights.config
        config = self._config
        self._heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim, config.rms_norm_eps)
        parts = ("attention_norm", "qkv", "o", "mlp_norm", "gate", "up", "down")
        self._layers = [
            tuple(weights[f"layers.{layer}.{part}"] for part in parts) for layer in range(config.num_layers)
        ]
        self._cos_sin = rotations(config, device)
        self._prefill_block = device.compiled(prefill_block) if is_compiled else prefill_block
        self._decode_block = device.compiled(decode_block) if is_compiled else decode_block

    def new_cache(self, num_seqs: int, max_len: int) -> StaticCache:
        """An empty cache."""
        shape = (num_seqs, self._heads.num_kv, max_len, self._heads.dim)
        zeros = [
            torch.zeros(shape, dtype=self._weights.dtype, device=self._device.kind)
            for _ in range(2 * len(self._layers))
        ]
        position = torch.zeros(1, dtype=torch.int64, device=self._device.kind)
        return StaticCache(zeros[::2], zeros[1::2], position)

    @torch.inference_mode()
    def prefill(self, ids: Tensor, cache: StaticCache) -> Tensor:
        """Logits (num_seqs, vocab) after the tokens `ids` (num_seqs, num_tokens), which are the first."""
        num_tokens = ids.shape[1]
        residual, cos_sin = self._weights["embed"][ids], self._cos_sin[:, :num_tokens]
        added = torch.zeros_like(residual)
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            residual, added = self._prefill_block(self._heads, residual, added, layer, cos_sin, keys, values)
        cache.position.fill_(num_tokens)
        return self._logits((residual + added)[:, -1])

    @torch.inference_mode()
    def decode(self, ids: Tensor, cache: StaticCache) -> Tensor:
        """Logits (num_seqs, vocab) after one more token of each, `ids` (num_seqs, 1). Reads nothing on the host."""
        position = cache.position
        residual, cos_sin = self._weights["embed"][ids], self._cos_sin[:, position]
        mask = torch.arange(cache.keys[0].shape[2], device=ids.device)[None] <= position
        added = torch.zeros_like(residual)
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            residual, added = self._decode_block(
                self._heads, residual, added, layer, cos_sin, keys, values, position, mask
            )
        position.add_(1)
        return self._logits((residual + added)[:, -1])

    def prefill_alone(self, ids: Tensor) -> Tensor:
        """`prefill` with a cache of its own."""
        return self.prefill(ids, self.new_cache(*ids.shape))

    def _logits(self, rows: Tensor) -> Tensor:
        normed = rms_norm(rows, rows.shape[-1:], self._weights["norm"], self._heads.eps)
        return linear(normed, self._weights["lm_head"])


def rotations(config: ModelConfig, device: Device) -> Tensor:
    """Cosines and sines of each position, (2, max_position, head_dim) float32."""
    half = torch.arange(0, config.head_dim, 2, device=device.kind, dtype=torch.float64) / config.head_dim
    positions = torch.arange(config.max_position, device=device.kind, dtype=torch.float64)
    angles = torch.outer(positions, config.rope.theta**-half).repeat(1, 2)
    return torch.stack([angles.cos(), angles.sin()]).float()


def prefill_block(
    heads: Heads,
    residual: Tensor,
    added: Tensor,
    layer: tuple[Tensor, ...],
    cos_sin: Tensor,
    keys: Tensor,
    values: Tensor,
) -> tuple[Tensor, Tensor]:
    """A layer over the first tokens of all sequences."""
    residual, query, key, value = queries(heads, residual + added, layer, cos_sin)
    keys[:, :, : key.shape[2]] = key
    values[:, :, : value.shape[2]] = value
    attended = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return rest(heads, residual, attended, layer)


def decode_block(
    heads: Heads,
    residual: Tensor,
    added: Tensor,
    layer: tuple[Tensor, ...],
    cos_sin: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """A layer over one token of each sequence. Attention is two products and what the compiler makes between them."""
    residual, query, key, value = queries(heads, residual + added, layer, cos_sin)
    keys.index_copy_(2, position, key)
    values.index_copy_(2, position, value)
    # The queries of a group are the rows of one product: keys and values are read once, and not repeated in memory.
    grouped = query.view(len(query), heads.num_kv, heads.num // heads.num_kv, heads.dim)
    scores = (grouped @ keys.transpose(2, 3)).float() * heads.dim**-0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(query.dtype)
    return rest(heads, residual, (weights @ values).view_as(query), layer)


def queries(
    heads: Heads, residual: Tensor, layer: tuple[Tensor, ...], cos_sin: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The residual, and rotated queries, rotated keys and values by head: (num_seqs, heads, num_tokens, dim)."""
    num_seqs, num_tokens, size = residual.shape
    normed = rms_norm(residual, (size,), layer[0], heads.eps)
    qkv = linear(normed, layer[1]).view(num_seqs, num_tokens, -1, heads.dim).transpose(1, 2)
    query, key, value = torch.split(qkv, [heads.num, heads.num_kv, heads.num_kv], dim=1)
    return residual, rotated(query, cos_sin), rotated(key, cos_sin), value


def rotated(rows: Tensor, cos_sin: Tensor) -> Tensor:
    first, second = rows.float().chunk(2, dim=-1)
    turned = rows.float() * cos_sin[0] + torch.cat([-second, first], dim=-1) * cos_sin[1]
    return turned.to(rows.dtype)


def rest(
    heads: Heads, residual: Tensor, attended: Tensor, layer: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The layer behind its attention. The MLP's result is added by the next one, in the kernel of its norm."""
    num_seqs, num_tokens, size = residual.shape
    flat = attended.transpose(1, 2).reshape(num_seqs, num_tokens, heads.num * heads.dim)
    residual = residual + linear(flat, layer[2])
    normed = rms_norm(residual, (size,), layer[3], heads.eps)
    return residual, linear(silu(linear(normed, layer[4])) * linear(normed, layer[5]), layer[6])
