"""Layers: the weights of one rank's decoder layers, and the arithmetic that is of one sublayer alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interlace.models.families import Activation
from tokenweave.kernels import (
    AttentionLayer,
    Kernels,
    PackedLinear,
)

Change = Callable[[PackedLinear], PackedLinear]  # of a matrix


@dataclass(frozen=True)
class Mlp:
    """A gated MLP: the rank's columns of gate and up, and the rows of down that read them."""

    gate: PackedLinear  # (local intermediate, hidden)
    up: PackedLinear  # (local intermediate, hidden)
    down: PackedLinear  # (hidden, local intermediate)
    activation: Activation = "silu"

    def __call__(self, kernels: Kernels, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(num_tokens, hidden) -> this rank's partial sum of (num_tokens, hidden), in `out` if that is given."""
        return kernels.linear(
            kernels.gated_linear(x, self.gate, self.up, self.activation), self.down, out=out
        )

    @property
    def matrices(self) -> tuple[PackedLinear, ...]:
        return self.gate, self.up, self.down

    def changed(self, change: Change) -> Mlp:
        """The same with each matrix as `change` makes it of this one's, in the order of `matrices`."""
        return replace(self, gate=change(self.gate), up=change(self.up), down=change(self.down))


@dataclass(frozen=True)
class MixtureOfExperts:
    """A sparse MLP (Mixtral, arXiv 2401.04088, section 2.1): each token runs through its best few experts.

    Every token also runs through the shared expert, if there is one, whose part a gate weighs (Qwen2-MoE, arXiv
    2407.10671, section 2.2.2). The router and that gate are whole on every rank; each expert is split like a dense MLP,
    so the ranks' loads are equal whatever the router chooses.
    """

    router: PackedLinear  # (num_experts, hidden)
    experts: Sequence[Mlp]  # as `Kernels.group_experts` gave them
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
        total = kernels.mixture(x, self.experts, chosen, weights)
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
        return (*self.experts,) if self.shared is None else (*self.experts, self.shared)

    @property
    def matrices(self) -> tuple[PackedLinear, ...]:
        gates = (self.router,) if self.shared_gate is None else (self.router, self.shared_gate)
        return (*gates, *(matrix for mlp in self.mlps for matrix in mlp.matrices))

    def changed(self, change: Change) -> MixtureOfExperts:
        """As `Mlp.changed`, of kernels that do not group experts."""
        return replace(
            self,
            router=change(self.router),
            shared_gate=None if self.shared_gate is None else change(self.shared_gate),
            experts=tuple(expert.changed(change) for expert in self.experts),
            shared=None if self.shared is None else self.shared.changed(change),
        )


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

    @property
    def matrices(self) -> tuple[PackedLinear, ...]:
        return self.qkv, self.o, *self.mlp.matrices

    def changed(self, change: Change) -> Layer:
        """The same with each matrix as `change` makes it of this one's, in the order of `matrices`."""
        return replace(self, qkv=change(self.qkv), o=change(self.o), mlp=self.mlp.changed(change))
