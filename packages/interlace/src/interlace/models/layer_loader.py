"""Loading: the rank's own part of the weights, read and packed layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from interlace.models.head_padding import HeadPadding
from interlace.models.layers import Layer, MixtureOfExperts, Mlp, WholeNorms
from interlace.models.matrix_reader import MatrixReader
from interlace.models.shard import Shard, scale
from interlace.models.weights import WeightSource
from tokenweave.kernels import (
    AttentionLayer,
    HeadLayout,
    Kernels,
    LazyWeight,
    PackedLinear,
    ResidualNorms,
    join,
)


class LayerLoader:
    """Reads and packs one rank's weights."""

    def __init__(
        self,
        source: WeightSource,
        shard: Shard,
        kernels: Kernels,
        dtype: torch.dtype,
        padding: HeadPadding,
        heads: HeadLayout,
        quantize: str = "none",
    ) -> None:
        self.source, self.shard, self.kernels, self.dtype, self.padding, self.heads = (
            source, shard, kernels, dtype, padding, heads,
        )  # fmt: skip
        self.config = source.config
        self.matrices = MatrixReader(source, quantize)
        self._pack_matrix = kernels.pack_fp8 if quantize == "fp8" else kernels.pack
        self.q_rows = scale(shard.heads, self.config.head_dim)
        self.kv_rows = scale(shard.kv_heads, self.config.head_dim)

    def vocabulary(self) -> tuple[PackedLinear, PackedLinear]:
        """The embedding and the output head; one matrix where the model ties them."""
        embed = self._stacked({"embed": self.shard.vocab}, None, None)
        self.source.release_pages()
        if self.config.tie_word_embeddings:
            return embed, embed
        return embed, self._stacked({"lm_head": self.shard.vocab}, None, None)

    def _layer(self, index: int) -> Layer:
        name = f"layers.{index}"
        return Layer(
            qkv=self._qkv(name),
            whole_norms=self._whole_norms(name) if self.config.qk_norm_over_heads else None,
            rotation=int(self.config.local_rope is not None and self.config.window_of(index) is not None),
            attention=self._attention(index),
            o=self._summed(f"{name}.o", self.q_rows, self.padding),
            mlp=self._experts(index) if self.config.has_experts(index) else self._dense_mlp(index),
        )

    def _qkv(self, name: str) -> PackedLinear:
        config, q, k = self.config, self.q_rows, self.kv_rows
        if config.qk_norm_over_heads:
            q = scale(range(config.num_heads), config.head_dim)
            k = scale(range(config.num_kv_heads), config.head_dim)
        return self._joined(name, {"q": q, "k": k, "v": self.kv_rows}, self.padding)

    def _whole_norms(self, name: str) -> WholeNorms:
        width = self.padding.width
        return WholeNorms(
            self._head_norm(f"{name}.q_norm"),
            self._head_norm(f"{name}.k_norm"),
            scale(self.shard.heads, width),
            scale(self.shard.kv_heads, width),
            self.padding.eps(self.config.rms_norm_eps),
        )

    def _attention(self, index: int) -> AttentionLayer:
        config, name = self.config, f"layers.{index}"
        has_head_norms = config.qk_norm and not config.qk_norm_over_heads
        return AttentionLayer(
            self.heads,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            sliding_window=config.window_of(index),
            q_norm=self._head_norm(f"{name}.q_norm") if has_head_norms else None,
            k_norm=self._head_norm(f"{name}.k_norm") if has_head_norms else None,
            norm_eps=self.padding.eps(config.rms_norm_eps),
        )

    def layers(self) -> Iterator[Layer]:
        """Every layer, giving the file's pages back after each: the peak is within a layer of the packed weights."""
        for index in range(self.config.num_layers):
            yield self._layer(index)
            self.source.release_pages()

    def norms(self) -> tuple[ResidualNorms, ...]:
        """The plan's norms: norm n of the plan is the n-th of these."""
        config = self.config
        before, after = config.norms != "after", config.norms != "before"
        sublayers = [
            f"layers.{i}.{which}" for i in range(config.num_layers) for which in ("attention", "mlp")
        ]
        next_norms = [f"{name}_norm" if before else None for name in sublayers] + ["norm"]
        post_norms = [None] + [f"{name}_post_norm" if after else None for name in sublayers]
        return tuple(
            ResidualNorms(
                self._vector(name) if name else None,
                config.rms_norm_eps,
                self._vector(post) if post else None,
            )
            for name, post in zip(next_norms, post_norms, strict=True)
        )

    def _experts(self, layer: int) -> MixtureOfExperts:
        config, name = self.config, f"layers.{layer}"
        columns, shared = self.shard.intermediate, self.shard.columns(config.shared_intermediate_size)
        has_shared = config.shared_intermediate_size > 0
        return MixtureOfExperts(
            router=self._pack(self.source.load(f"{name}.router")),
            experts=self.kernels.group_experts(
                [self._mlp(f"{name}.experts.{e}", columns) for e in range(config.num_experts)]
            ),
            experts_per_token=config.experts_per_token,
            norm_topk=config.norm_topk,
            shared=self._mlp(f"{name}.shared", shared) if has_shared else None,
            shared_gate=self._pack(self.source.load(f"{name}.shared_gate")) if has_shared else None,
        )

    def _dense_mlp(self, layer: int) -> Mlp:
        return self._mlp(f"layers.{layer}", self.shard.columns(self.config.mlp_size(layer)))

    def _mlp(self, name: str, columns: range) -> Mlp:
        gate, up = self._gated(name, columns)
        return Mlp(gate, up, self._summed(f"{name}.down", columns), self.config.activation)

    def _gated(self, name: str, rows: range) -> tuple[PackedLinear, PackedLinear]:
        """The rank's rows of gate and up: both stored, or both dense."""
        names = [f"{name}.{part}" for part in ("gate", "up")]
        biases = [
            self._bias(f"{each}_bias", rows) if self.source.has(f"{each}_bias") else None for each in names
        ]
        stored = self.matrices.stack(dict.fromkeys(names, rows))
        if stored is not None:
            gate, up = (
                self.kernels.pack_stored(*each, dtype=self.dtype) for each in zip(stored, biases, strict=True)
            )
        else:
            gate, up = (
                self._packed(self.matrices.dense(each, rows), bias)
                for each, bias in zip(names, biases, strict=True)
            )
        return gate, up

    def _joined(self, name: str, rows: Mapping[str, range], heads: HeadPadding | None = None) -> PackedLinear:
        """The rank's rows of several matrices as one, those of `heads` widened.

        Where only some of them have a bias, the others' is zero.
        """
        own_rows = {f"{name}.{part}": own for part, own in rows.items()}
        if not any(self.source.has(f"{each}_bias") for each in own_rows):
            return self._stacked(own_rows, None, heads)
        biases = [self._bias(f"{each}_bias", own) for each, own in own_rows.items()]
        bias = torch.cat([heads.vector(each) for each in biases] if heads else biases)
        return self._stacked(own_rows, bias, heads)

    def _stacked(
        self, rows: Mapping[str, range], bias: Tensor | None, heads: HeadPadding | None
    ) -> PackedLinear:
        """Rows of several matrices, one below the other, those of `heads` widened."""
        stored = self.matrices.stack(rows)
        if stored is not None:
            widened = [heads.stored_rows(part) for part in stored] if heads else stored
            return self.kernels.pack_stored(widened, bias, dtype=self.dtype)
        parts = [self.matrices.dense(name, own) for name, own in rows.items()]
        return self._packed(join([heads.lazy_rows(part) for part in parts] if heads else parts), bias)

    def _bias(self, name: str, rows: range) -> Tensor:
        return self.source.load(name, rows=rows).float() if self.source.has(name) else torch.zeros(len(rows))

    def _summed(self, name: str, columns: range, heads: HeadPadding | None = None) -> PackedLinear:
        """The rank's columns of a matrix whose products are summed over the ranks: rank 0's adds the bias, once."""
        has_bias = self.shard.rank == 0 and self.source.has(f"{name}_bias")
        bias = self.source.load(f"{name}_bias").float() if has_bias else None
        stored = self.matrices.columns(name, columns, is_widened=heads is not None and heads.is_needed)
        if stored is not None:
            return self.kernels.pack_stored(stored, bias, dtype=self.dtype)
        weight = self.matrices.dense(name, columns=columns)
        return self._packed(heads.lazy_columns(weight) if heads else weight, bias)

    def _head_norm(self, name: str) -> Tensor:
        return self.padding.norm(self.source.load(name)).to(self.kernels.device, self.dtype)

    def _packed(self, weight: LazyWeight, bias: Tensor | None = None) -> PackedLinear:
        """A matrix that is in no blocks: dense, or in FP8."""
        return self._pack_matrix(weight, bias, dtype=self.dtype)

    def _pack(self, weight: Tensor) -> PackedLinear:
        """A matrix that is always dense."""
        return self.kernels.pack(weight, dtype=self.dtype)

    def _vector(self, name: str) -> Tensor:
        return self.matrices.vector(name).to(self.kernels.device, self.dtype)
