"""The decoder: one definition of a transformer that every family runs through.

`Decoder` holds one rank's weights and gives each operation of the plan its meaning. It decides nothing about order:
the plan does, and an executor runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interlace.models.batch import ForwardBatch
from interlace.models.families import Activation
from interlace.models.head_padding import HeadPadding
from interlace.models.rope import Rotations
from interlace.models.shard import Shard, scale
from interlace.models.weights import WeightSource
from tokenweave.communicators import Communicator
from tokenweave.execute import Handler, check_methods, handlers_of
from tokenweave.kernels import (
    AttentionBatch,
    AttentionLayer,
    HeadLayout,
    Kernels,
    PackedLinear,
    ResidualNorms,
)
from tokenweave.plan import Operation, Plan, Step, plan_forward


@dataclass(frozen=True)
class Mlp:
    """A gated MLP: the rank's columns of gate and up, and the rows of down that read them."""

    gate_up: PackedLinear  # (2 * local intermediate, hidden)
    down: PackedLinear  # (hidden, local intermediate)
    activation: Activation = "silu"

    def __call__(self, kernels: Kernels, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(num_tokens, hidden) -> this rank's partial sum of (num_tokens, hidden), in `out` if that is given."""
        gate_and_mul = kernels.silu_and_mul if self.activation == "silu" else kernels.gelu_tanh_and_mul
        return kernels.linear(gate_and_mul(kernels.linear(x, self.gate_up)), self.down, out=out)


@dataclass(frozen=True)
class MixtureOfExperts:
    """A sparse MLP (Mixtral, arXiv 2401.04088, section 2.1): each token runs through its best few experts.

    Every token also runs through the shared expert, if there is one, whose part a gate weighs (Qwen2-MoE, arXiv
    2407.10671, section 2.2.2). The router and that gate are whole on every rank; each expert is split like a dense MLP,
    so the ranks' loads are equal whatever the router chooses.
    """

    router: PackedLinear  # (num_experts, hidden)
    experts: tuple[Mlp, ...]
    experts_per_token: int
    norm_topk: bool = True  # the chosen experts' weights sum to 1
    shared: Mlp | None = None
    shared_gate: PackedLinear | None = None  # (1, hidden)

    def __call__(self, kernels: Kernels, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(num_tokens, hidden) -> this rank's partial sum of (num_tokens, hidden), in `out` if that is given."""
        scores = kernels.linear(
            x, self.router, out=x.new_empty(x.shape[0], self.router.n, dtype=torch.float32)
        )
        weights, chosen = scores.softmax(dim=-1).topk(self.experts_per_token, dim=-1)
        if self.norm_topk:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        total = x.new_zeros(x.shape, dtype=torch.float32)
        for index, expert in enumerate(
            self.experts
        ):  # in the same order for every token: sums do not depend on the batch
            rows, place = (chosen == index).nonzero(as_tuple=True)
            if rows.numel():
                total[rows] += expert(kernels, x[rows]).float() * weights[rows, place, None]
        if self.shared is not None and self.shared_gate is not None:
            total += self.shared(kernels, x).float() * self._shared_weight(kernels, x, self.shared_gate)
        return total.to(x.dtype) if out is None else out.copy_(total)

    def _shared_weight(self, kernels: Kernels, x: Tensor, gate: PackedLinear) -> Tensor:
        """The sigmoid of x times the gate, (num_tokens, 1)."""
        # As a softmax over each row: the bits of torch's sigmoid depend on where in the tensor a value is.
        logits = x.new_zeros(x.shape[0], 2, dtype=torch.float32)
        logits[:, :1] = kernels.linear(x, gate, out=x.new_empty(x.shape[0], 1, dtype=torch.float32))
        return logits.softmax(dim=-1)[:, :1]

    @property
    def mlps(self) -> tuple[Mlp, ...]:
        """All experts, the shared one included."""
        return self.experts if self.shared is None else (*self.experts, self.shared)


@dataclass(frozen=True)
class WholeNorms:
    """Norms of q and of k over all heads together (OLMo 2, arXiv 2501.00656, section 3.1).

    The mean is over the heads of all ranks. So every rank computes all of q and k, and keeps its own heads.
    """

    q: Tensor  # (num_heads * head_dim,)
    k: Tensor  # (num_kv_heads * head_dim,)
    own_q: range  # columns of q
    own_k: range
    eps: float

    def __call__(self, kernels: Kernels, qkv: Tensor) -> Tensor:
        """[all of q | all of k | the rank's v] -> [q | k | v] of the rank's heads, normed."""
        end_q, end_k = len(self.q), len(self.q) + len(self.k)
        q = kernels.rms_norm(qkv[:, :end_q], self.q, self.eps)
        k = kernels.rms_norm(qkv[:, end_q:end_k], self.k, self.eps)
        own_q, own_k = q[:, self.own_q.start : self.own_q.stop], k[:, self.own_k.start : self.own_k.stop]
        return torch.cat([own_q, own_k, qkv[:, end_k:]], dim=1)


@dataclass(frozen=True)
class Layer:
    """One decoder layer of one rank."""

    qkv: PackedLinear  # ((heads + 2 * kv_heads) * head_dim, hidden)
    attention: AttentionLayer
    o: PackedLinear  # (hidden, heads * head_dim)
    mlp: Mlp | MixtureOfExperts
    whole_norms: WholeNorms | None
    rotation: int  # which of the decoder's


class Decoder:
    """One rank's shard of a model, ready to run.

    Thread safety: none; one forward pass at a time.
    """

    def __init__(
        self,
        source: WeightSource,
        shard: Shard,
        kernels: Kernels,
        communicator: Communicator,
        dtype: torch.dtype,
        max_model_len: int,
    ) -> None:
        """Read the rank's own part of the weights out of `source`, and nothing else of it.

        Raises:
            PlanError: the plan has an operation that `Forward` has no method for.
        """
        config = source.config
        check_methods(Forward, plan_forward(config.num_layers, 1).ops)
        self.config, self.shard, self.kernels, self.communicator, self.dtype = (
            config, shard, kernels, communicator, dtype,
        )  # fmt: skip
        self.padding = HeadPadding.to_multiple(config.head_dim, kernels.head_alignment)
        self.heads = replace(shard.head_layout(config), head_dim=self.padding.width)
        ropes = (config.rope, config.local_rope) if config.local_rope else (config.rope,)
        self.rotations = tuple(
            Rotations(rope, config.head_dim, max_model_len, self.padding) for rope in ropes
        )
        # Of the dtype's precision, as in transformers.
        self.embedding_scale = torch.tensor(config.embedding_scale, dtype=dtype).item()
        loader = _Loader(source, shard, kernels, dtype, self.padding, self.heads)
        self.embed, self.lm_head = loader.vocabulary()
        self.layers = tuple(loader.layers())
        self.norms = loader.norms()

    @property
    def notices(self) -> tuple[str, ...]:
        """Messages for whoever runs the model."""
        if not self.padding.is_needed:
            return ()
        size, width = self.padding.head_dim, self.padding.width
        return (
            f"the model's attention heads have {size} dimensions, which the {self.kernels.name} kernels compute as "
            f"{width}: the KV cache takes {width / size:.2g} times the memory",
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of this rank's packed weights."""
        packed = {id(weight): weight.size_bytes for weight in self._packed_weights()}
        return sum(packed.values())

    def _packed_weights(self) -> Iterator[PackedLinear]:
        yield from (self.embed, self.lm_head)
        for layer in self.layers:
            yield from (layer.qkv, layer.o)
            dense = (layer.mlp,) if isinstance(layer.mlp, Mlp) else layer.mlp.mlps
            for mlp in dense:
                yield from (mlp.gate_up, mlp.down)

    def forward(self, plan: Plan, batch: ForwardBatch, cache: Tensor) -> Forward:
        """A forward pass over `batch`, whose steps an executor runs; `cache` is what `Kernels.new_kv_cache` gave."""
        return Forward(self, plan, batch, cache)


class _Loader:
    """Reads and packs one rank's weights."""

    def __init__(
        self,
        source: WeightSource,
        shard: Shard,
        kernels: Kernels,
        dtype: torch.dtype,
        padding: HeadPadding,
        heads: HeadLayout,
    ) -> None:
        self.source, self.shard, self.kernels, self.dtype, self.padding, self.heads = (
            source, shard, kernels, dtype, padding, heads,
        )  # fmt: skip
        self.config = source.config
        self.q_rows = scale(shard.heads, self.config.head_dim)
        self.kv_rows = scale(shard.kv_heads, self.config.head_dim)

    def vocabulary(self) -> tuple[PackedLinear, PackedLinear]:
        """The embedding and the output head; one matrix where the model ties them."""
        embed = self._pack(self.source.load("embed", rows=self.shard.vocab))
        if self.config.tie_word_embeddings:
            return embed, embed
        return embed, self._pack(self.source.load("lm_head", rows=self.shard.vocab))

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
        """Every layer, giving the file's pages back after each: the peak is one layer above the packed weights."""
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
            experts=tuple(self._mlp(f"{name}.experts.{e}", columns) for e in range(config.num_experts)),
            experts_per_token=config.experts_per_token,
            norm_topk=config.norm_topk,
            shared=self._mlp(f"{name}.shared", shared) if has_shared else None,
            shared_gate=self._pack(self.source.load(f"{name}.shared_gate")) if has_shared else None,
        )

    def _dense_mlp(self, layer: int) -> Mlp:
        return self._mlp(f"layers.{layer}", self.shard.columns(self.config.mlp_size(layer)))

    def _mlp(self, name: str, columns: range) -> Mlp:
        return Mlp(
            self._joined(name, {"gate": columns, "up": columns}),
            self._summed(f"{name}.down", columns),
            self.config.activation,
        )

    def _joined(self, name: str, rows: Mapping[str, range], heads: HeadPadding | None = None) -> PackedLinear:
        """The rank's rows of several matrices as one, those of `heads` widened.

        Where only some of them have a bias, the others' is zero.
        """
        parts = [self.source.load(f"{name}.{part}", rows=own) for part, own in rows.items()]
        weight = torch.cat([heads.rows(part) for part in parts] if heads else parts)
        if not any(self.source.has(f"{name}.{part}_bias") for part in rows):
            return self._pack(weight)
        biases = [self._bias(f"{name}.{part}_bias", own) for part, own in rows.items()]
        return self._pack(weight, torch.cat([heads.vector(bias) for bias in biases] if heads else biases))

    def _bias(self, name: str, rows: range) -> Tensor:
        return self.source.load(name, rows=rows).float() if self.source.has(name) else torch.zeros(len(rows))

    def _summed(self, name: str, columns: range, heads: HeadPadding | None = None) -> PackedLinear:
        """The rank's columns of a matrix whose products are summed over the ranks: rank 0's adds the bias, once."""
        has_bias = self.shard.rank == 0 and self.source.has(f"{name}_bias")
        bias = self.source.load(f"{name}_bias").float() if has_bias else None
        weight = self.source.load(name, columns=columns)
        return self._pack(heads.columns(weight) if heads else weight, bias)

    def _head_norm(self, name: str) -> Tensor:
        return self.padding.norm(self.source.load(name)).to(self.dtype)

    def _pack(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        return self.kernels.pack(weight, bias, dtype=self.dtype)

    def _vector(self, name: str) -> Tensor:
        return self.source.load(name).to(self.dtype)


class Part:
    """One part of the tokens of a forward pass, and the tensors that its steps hand on to each other.

    In the last layer, once its keys are stored, a part goes on with the rows whose logits are wanted, if those are few
    (`ForwardBatch.ending`): `wanted` are these rows, and `hidden` and `residual` have only them from there on.
    """

    def __init__(self, batch: ForwardBatch, rotations: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Each kind of layers has its rotations: those of the pass, and this part's rows of them, (num_tokens,)."""
        self.batch = batch
        self.wanted = None if batch.ending is batch else batch.logit_rows
        self.attention = tuple(_attention_batch(batch, table, rows) for table, rows in rotations)
        self.wanted_attention = self.attention  # of the rows that go on in the last layer
        if self.wanted is not None and not self.is_done:
            self.wanted_attention = tuple(
                _attention_batch(batch.ending, table, rows[self.wanted]) for table, rows in rotations
            )
        self.hidden: Tensor  # (rows, hidden): a partial sum before REDUCE_NORM, normed after it
        self.residual: Tensor  # (rows, hidden) float32: belongs to the communicator between its calls
        self.logits: Tensor  # (num_logits, local vocab) float32

    @property
    def is_done(self) -> bool:
        """Nothing of this part is wanted behind the last layer's keys."""
        return self.wanted is not None and not len(self.wanted)


def _attention_batch(batch: ForwardBatch, rotations: Tensor, rotation_rows: Tensor) -> AttentionBatch:
    return AttentionBatch(
        rotations, rotation_rows, batch.slots, batch.block_tables, batch.query_start, batch.seq_lens
    )


class Forward:
    """One pass of a decoder over one batch: the handlers that the plan's steps call.

    Thread safety: handlers of steps that do not wait for each other may run at the same time.
    """

    def __init__(self, decoder: Decoder, plan: Plan, batch: ForwardBatch, cache: Tensor) -> None:
        self.decoder, self.cache, self._ops = decoder, cache, plan.ops
        kinds = [rotations.of(batch) for rotations in decoder.rotations]
        self.parts = tuple(
            Part(batch.part(rows), [(table, places[rows.start : rows.stop]) for table, places in kinds])
            for rows in plan.parts
        )
        self.logits: Tensor  # (num_logits, vocab) float32 on rank 0 after GATHER; else this rank's part

    @property
    def handlers(self) -> Mapping[Operation, Handler]:
        """The methods below, by the operations that name them."""
        return handlers_of(self, self._ops)

    def embed(self, step: Step) -> None:
        decoder, part = self.decoder, self._part_of(step)
        rows = decoder.kernels.gather_rows(decoder.embed, part.batch.token_ids, decoder.shard.vocab.start)
        # Taken here, on the compute lane, as every partial sum: all ranks must take them in one order.
        part.hidden = self._new_partial(part.batch.num_tokens).copy_(rows)
        if decoder.embedding_scale != 1.0:
            part.hidden *= decoder.embedding_scale
        part.residual = torch.zeros_like(part.hidden, dtype=torch.float32)

    def attention(self, step: Step) -> None:
        decoder, part, kernels = self.decoder, self._part_of(step), self.decoder.kernels
        index = _layer_of(step)
        layer, cache = decoder.layers[index], self.cache[index]
        batch = part.attention[layer.rotation]
        qkv = kernels.linear(part.hidden, layer.qkv)
        if layer.whole_norms is not None:
            qkv = layer.whole_norms(kernels, qkv)
        q = kernels.rope_and_store(qkv, cache, batch, layer.attention)
        if part.wanted is not None and self._is_last(index):
            if part.is_done:
                return
            q, batch = q[part.wanted], part.wanted_attention[layer.rotation]
        attended = kernels.paged_attention(q, cache, batch, layer.attention)
        part.hidden = kernels.linear(attended, layer.o, out=self._new_partial(len(attended)))

    def mlp(self, step: Step) -> None:
        part, index = self._part_of(step), _layer_of(step)
        if part.is_done and self._is_last(index):
            return
        mlp = self.decoder.layers[index].mlp
        part.hidden = mlp(self.decoder.kernels, part.hidden, out=self._new_partial(len(part.hidden)))

    def reduce_norm(self, step: Step) -> None:
        decoder, part, communicator = self.decoder, self._part_of(step), self.decoder.communicator
        assert step.norm is not None
        last = 2 * (decoder.config.num_layers - 1)  # the norm before the last layer
        if part.is_done and step.norm > last:
            return
        part.hidden = communicator.all_reduce_rms_norm(part.hidden, part.residual, decoder.norms[step.norm])
        if part.wanted is not None and not part.is_done and step.norm == last:
            part.residual = communicator.select_residual(part.residual, part.wanted, decoder.dtype)

    def output_head(self, step: Step) -> None:
        part = self._part_of(step)
        rows = part.hidden
        if part.wanted is None or part.is_done:  # otherwise there are no others left
            rows = rows[part.batch.logit_rows]
        out = rows.new_empty(rows.shape[0], self.decoder.lm_head.n, dtype=torch.float32)
        logits = self.decoder.kernels.linear(rows, self.decoder.lm_head, out=out)
        cap = self.decoder.config.logit_softcap
        part.logits = logits if cap is None else softcap(self.decoder.kernels, logits, cap)

    def gather(self, step: Step) -> None:
        """Join the ranks' parts of the vocabulary on rank 0."""
        decoder, parts = self.decoder, self.parts
        own = parts[0].logits if len(parts) == 1 else torch.cat([part.logits for part in parts])
        shards = (Shard.of(decoder.config, rank, decoder.shard.size) for rank in range(decoder.shard.size))
        joined = decoder.communicator.gather_columns(own, [len(shard.vocab) for shard in shards])
        self.logits = own if joined is None else joined

    def _new_partial(self, num_rows: int) -> Tensor:
        """Where a part's next partial sum goes: memory that the ranks share, if the communicator has such."""
        decoder = self.decoder
        return decoder.communicator.new_partial(num_rows, decoder.config.hidden_size, decoder.dtype)

    def _is_last(self, layer: int) -> bool:
        return layer == self.decoder.config.num_layers - 1

    def _part_of(self, step: Step) -> Part:
        assert step.part is not None
        return self.parts[step.part]


def _layer_of(step: Step) -> int:
    assert step.layer is not None
    return step.layer


def softcap(kernels: Kernels, logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap): float32 of the same shape.

    With g = 2 * logits / cap, tanh(g / 2) is (2 * silu(g) - g) / g. The kernel's silu has the same bits wherever a
    value is; torch's tanh has not.
    """
    g = logits * (2.0 / cap)
    silu = kernels.silu_and_mul(torch.cat([g, torch.ones_like(g)], dim=1))
    return torch.where(g == 0, g, (2.0 * silu - g) / g) * cap
