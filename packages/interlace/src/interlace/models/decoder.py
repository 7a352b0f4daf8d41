"""The decoder: one definition of a transformer that every family runs through.

`Decoder` holds one rank's weights and gives each operation of the plan its meaning. It decides nothing about order:
the plan does, and an executor runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from interlace.models.batch import ForwardBatch
from interlace.models.fed_tokens import FedTokens
from interlace.models.head_padding import HeadPadding
from interlace.models.layer_keeper import LayerKeeper
from interlace.models.layer_loader import LayerLoader
from interlace.models.parts import Part, PassInputs
from interlace.models.rope import Rotations
from interlace.models.shard import Shard
from interlace.models.weights import WeightSource
from tokenweave.communicators import Communicator
from tokenweave.execute import Handler, check_methods, handlers_of
from tokenweave.kernels import Kernels
from tokenweave.plan import Moves, Op, Operation, Plan, Step, plan_forward


class LayerMover(Protocol):
    """Makes the moves of one pass between tiers of memory, a layer at a time."""

    def evict(self, layer: int) -> None:
        """Returns once what the pass overwrites in `layer` is written down."""

    def fetch(self, layer: int) -> None:
        """Returns once the blocks of `layer` are there that the pass reads, or are given up."""

    def store(self, layer: int) -> None:
        """Begins to write the full blocks of `layer` down."""


class Decoder:
    """One rank's shard of a model, ready to run. All its tensors are on the device of its kernels.

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
        quantize: str = "none",
        keeper: LayerKeeper | None = None,
    ) -> None:
        """Read the rank's own part of the weights out of `source`, and nothing else of it.

        `quantize` says which weights are held as blocks: see `MatrixReader`. With a `keeper`, which has the layers'
        matrices then, a plan has to fetch them.

        Raises:
            PlanError: the plan has an operation that `Forward` has no method for.
        """
        config = source.config
        check_methods(Forward, plan_forward(config.num_layers, 1, None, Moves(True, True, True, True)).ops)
        self.config, self.shard, self.kernels, self.communicator, self.dtype = (
            config, shard, kernels, communicator, dtype,
        )  # fmt: skip
        self.max_model_len = max_model_len
        self.padding = HeadPadding.to_multiple(config.head_dim, kernels.head_alignment)
        self.heads = replace(shard.head_layout(config), head_dim=self.padding.width)
        self.vocab_sizes = [len(each.vocab) for each in Shard.all_of(config, shard.size)]  # of each rank
        ropes = (config.rope, config.local_rope) if config.local_rope else (config.rope,)
        self.rotations = tuple(
            Rotations(rope, config.head_dim, max_model_len, self.padding, kernels.device) for rope in ropes
        )
        # Of the dtype's precision, as in transformers.
        self.embedding_scale = torch.tensor(config.embedding_scale, dtype=dtype).item()
        loader = LayerLoader(source, shard, kernels, dtype, self.padding, self.heads, quantize)
        self.embed, self.lm_head = loader.vocabulary()
        self.keeper = keeper
        self.layers = tuple(loader.layers()) if keeper is None else keeper.keep(loader.layers())
        self.norms = loader.norms()
        source.release_pages()
        self.fed: FedTokens | None = None  # where batches may name tokens that the host does not know
        self._dense_notices = loader.matrices.notices

    @property
    def notices(self) -> tuple[str, ...]:
        """Messages for whoever runs the model."""
        if not self.padding.is_needed:
            return self._dense_notices
        size, width = self.padding.head_dim, self.padding.width
        return (
            f"the model's attention heads have {size} dimensions, which the {self.kernels.name} kernels compute as "
            f"{width}: the KV cache takes {width / size:.2g} times the memory",
            *self._dense_notices,
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of this rank's packed weights, wherever they are kept."""
        packed = [self.embed, self.lm_head, *(matrix for layer in self.layers for matrix in layer.matrices)]
        return sum({id(weight): weight.size_bytes for weight in packed}.values())

    def forward(
        self, plan: Plan, batch: ForwardBatch, cache: Tensor, mover: LayerMover | None = None
    ) -> Forward:
        """A forward pass over `batch`, whose steps an executor runs; `cache` is what `Kernels.new_kv_cache` gave.

        `mover` makes the moves of the batch; a rank without keys needs none.
        """
        parts = self.inputs(batch, plan.parts).parts_on(self.kernels.device)
        return Forward(self, plan, batch, cache, parts, mover)

    def inputs(self, batch: ForwardBatch, cuts: Sequence[range]) -> PassInputs:
        """All that kernels read of a pass over the parts of `batch` that have the rows `cuts`."""
        kinds = [rotations.of(batch) for rotations in self.rotations]
        are_kept = all(
            rotations.keeps(table) for rotations, (table, _) in zip(self.rotations, kinds, strict=True)
        )
        return PassInputs.of(batch, cuts, kinds, are_kept)


class Forward:
    """One pass of a decoder over one batch: the handlers that the plan's steps call.

    Thread safety: handlers of steps that do not wait for each other may run at the same time.
    """

    def __init__(
        self,
        decoder: Decoder,
        plan: Plan,
        batch: ForwardBatch,
        cache: Tensor,
        parts: tuple[Part, ...],
        mover: LayerMover | None = None,
    ) -> None:
        self.decoder, self.plan, self.batch, self.cache, self.parts = decoder, plan, batch, cache, parts
        self._mover = mover
        self.logits: Tensor  # (num_logits, vocab) float32 on rank 0 after GATHER; else this rank's part

    @property
    def num_decoding(self) -> int | None:
        """The rows of a pass in which each is a sequence's next token and has its logits wanted; None for others.

        All that its steps call depends on this number and on the split, apart from what they read by the batch's
        addresses.
        """
        batch = self.batch
        are_all_wanted = all(part.wanted is None for part in self.parts)
        # A capture waits for nothing that comes from a tier.
        is_ready = not {Op.EVICT, Op.FETCH, Op.FETCH_WEIGHTS} & self.plan.ops
        is_such = is_ready and are_all_wanted and batch.num_tokens == batch.num_seqs
        return batch.num_tokens if is_such else None

    def to_capture(self) -> Forward:
        """The same pass with token ids of its own, which a capture reads from: see `read`."""
        batch = replace(self.batch, token_ids=self.batch.token_ids.clone())
        return self.decoder.forward(self.plan, batch, self.cache, self._mover)

    def read(self, other: Forward) -> None:
        """Has the native calls that were captured on this pass work on the batch of `other`, a pass alike.

        `other` has to live while they run.
        """
        for own, others in zip(self.parts, other.parts, strict=True):
            own.read(others)

    def continue_from(self, captured: Forward) -> None:
        """Goes on with what the steps of `captured` left, in its memory: until it runs again."""
        for own, others in zip(self.parts, captured.parts, strict=True):
            own.hidden, own.residual = others.hidden, others.residual

    def check_indices(self) -> None:
        """Raises KernelError for an index of the batch that lies outside its table or the cache, and says which.

        The host reads the indices, so it waits for a device other than the CPU.
        """
        for part in self.parts:
            for attention in part.attention:
                attention.check_indices(self.cache.shape[1])

    @property
    def handlers(self) -> Mapping[Operation, Handler]:
        """The methods below, by the operations that name them."""
        return handlers_of(self, self.plan.ops)

    def embed(self, step: Step) -> None:
        decoder, part = self.decoder, self._part_of(step)
        ids = part.token_ids if decoder.fed is None else decoder.fed.resolve(part.token_ids)
        rows = decoder.kernels.gather_rows(decoder.embed, ids, decoder.shard.vocab.start)
        # Taken here, on the compute lane, as every partial sum: all ranks must take them in one order.
        part.hidden = self._new_partial(len(part.token_ids)).copy_(rows)
        if decoder.embedding_scale != 1.0:
            part.hidden *= decoder.embedding_scale
        num_tokens, hidden_size = part.hidden.shape
        part.residual = decoder.communicator.new_residual(num_tokens, hidden_size, decoder.dtype)

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
            num_tokens = len(part.hidden)
            part.residual = communicator.select_residual(
                part.residual, part.wanted, num_tokens, decoder.dtype
            )

    def output_head(self, step: Step) -> None:
        part = self._part_of(step)
        rows = part.hidden
        if len(part.logit_rows) != len(rows):  # otherwise there are no others left
            rows = rows[part.logit_rows]
        out = rows.new_empty(rows.shape[0], self.decoder.lm_head.n, dtype=torch.float32)
        logits = self.decoder.kernels.linear(rows, self.decoder.lm_head, out=out)
        cap = self.decoder.config.logit_softcap
        part.logits = logits if cap is None else softcap(self.decoder.kernels, logits, cap)

    def gather(self, step: Step) -> None:
        """Join the ranks' parts of the vocabulary on rank 0."""
        decoder, parts = self.decoder, self.parts
        own = parts[0].logits if len(parts) == 1 else torch.cat([part.logits for part in parts])
        joined = decoder.communicator.gather_columns(own, decoder.vocab_sizes)
        self.logits = own if joined is None else joined

    def evict(self, step: Step) -> None:
        if self._mover is not None:  # otherwise this rank has no keys
            self._mover.evict(_layer_of(step))

    def fetch(self, step: Step) -> None:
        if self._mover is not None:
            self._mover.fetch(_layer_of(step))

    def fetch_weights(self, step: Step) -> None:
        if self.decoder.keeper is not None:  # otherwise they are where they are read
            self.decoder.keeper.fetch(_layer_of(step))

    def prefetch_weights(self, step: Step) -> None:
        if self.decoder.keeper is not None:
            self.decoder.keeper.fetch_first()

    def store(self, step: Step) -> None:
        if self._mover is not None:
            self._mover.store(_layer_of(step))

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
