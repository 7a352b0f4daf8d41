"""The kernels of a decoder layer as the engine calls them, in the shapes of Llama-3-8B: beside torch's and the floors.

A floor is the bytes that a call cannot do without over the rate of a copy, or its operations over the rate of a large
product, whichever is longer; both rates are measured here. Weights and keys lie where no call finds them in the L2
cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.gpu.device import Call, Device, Measure, check_close
from benchmarks.gpu.findings import Finding
from benchmarks.gpu.floors import Floors
from benchmarks.gpu.overlap import COLD_BYTES
from benchmarks.gpu.stage import StageJob
from emucxl.bench.harness import Samples, interleaved
from tokenweave.kernels import (
    BLOCK_SIZE,
    AttentionBatch,
    AttentionLayer,
    HeadLayout,
    Kernels,
    ResidualNorms,
    blocks_for,
    make_kernels,
)

EPS = 1e-5
BOUND = {torch.bfloat16: 2e-2, torch.float32: 1e-4}  # of the relative error


@dataclass(frozen=True)
class KernelShapes:
    """The shapes that are measured, and how often."""

    heads: HeadLayout
    hidden_size: int
    products: dict[str, tuple[int, int]]  # (n, k)
    attention: tuple[tuple[int, int, int], ...]  # sequences, keys and new tokens of each
    tokens: tuple[int, ...]  # of products and norms
    rounds: int
    calls: int


LLAMA = HeadLayout(32, tuple(head // 4 for head in range(32)), 128)
PRODUCTS = {"qkv": (6144, 4096), "o": (4096, 4096), "gate": (14336, 4096), "down": (4096, 14336)}
DECODE, PREFILL = (
    ((1, 32768, 1), (64, 2048, 1), (256, 1024, 1)),
    ((1, 2048, 2048), (1, 8192, 8192), (8, 512, 512)),
)
FULL = KernelShapes(LLAMA, 4096, PRODUCTS, DECODE + PREFILL, (1, 64, 2048), rounds=7, calls=10)
QUICK = KernelShapes(LLAMA, 4096, PRODUCTS, (DECODE[1], PREFILL[0]), (1, 2048), rounds=3, calls=5)
DRY = KernelShapes(
    HeadLayout(2, (0, 0), 16),
    32,
    {"o": (32, 32)},
    ((2, 20, 1), (1, 5, 5)),
    (2,),
    rounds=1,
    calls=1,
)


@dataclass(frozen=True)
class KernelCase:
    """A call beside torch's, and the bytes and operations that it cannot do without."""

    name: str
    ours: Measure
    with_torch: Measure
    num_bytes: float
    flops: float


def run(job: StageJob) -> None:
    device = job.device
    shapes = DRY if job.options.is_dry_run else QUICK if job.options.is_quick else FULL
    kernels = make_kernels("cuda", device=device.kind)
    floors = Floors.measured(device, job.options.is_dry_run)
    kept: dict[str, object] = {"bytes_per_s": floors.bytes_per_s, "flops_per_s": floors.flops_per_s}
    for case in cases(device, kernels, shapes):
        found = interleaved({"ours": case.ours, "torch": case.with_torch}, shapes.rounds)
        floor_us, bound = floors.of(case.num_bytes, case.flops)
        kept[case.name] = {
            "floor_us": floor_us,
            "bound_by": bound,
            **{name: samples.to_json("us") for name, samples in found.items()},
        }
        job.told.keep(kernels=kept)
        job.told.show(finding(case.name, found, floor_us, bound))


def finding(name: str, found: dict[str, Samples], floor_us: float, bound: str) -> Finding:
    """The row of one case."""
    ours = found["ours"]
    got = f"{ours.text(1)} us, {floor_us / ours.median:.0%} of the floor ({bound}); torch takes "
    return Finding(name, got + f"{found['torch'].over(ours).median:.2f} times as long")


def cases(device: Device, kernels: Kernels, shapes: KernelShapes) -> Iterator[KernelCase]:
    """Every case, made and checked when its turn comes, so that no two are in memory at once."""
    for num_seqs, num_keys, num_new in shapes.attention:
        yield attention(device, kernels, shapes, num_seqs, num_keys, num_new)
    for name, (n, k) in shapes.products.items():
        for num_tokens in shapes.tokens:
            yield product(device, kernels, shapes, f"{name}, {num_tokens} tokens", num_tokens, n, k)
    for num_tokens in shapes.tokens:
        yield norm(device, kernels, shapes, num_tokens)


def attention(
    device: Device, kernels: Kernels, shapes: KernelShapes, num_seqs: int, num_keys: int, num_new: int
) -> KernelCase:
    """Causal attention of the last tokens of each sequence over a paged cache, beside torch's over dense keys."""
    heads, kind = shapes.heads, device.kind
    width, kv_width = heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim
    layer = AttentionLayer(heads, heads.head_dim**-0.5)
    tables = torch.randperm(num_seqs * blocks_for(num_keys), device=kind).int().view(num_seqs, -1)
    qkv = device.random(num_seqs * num_keys, width + 2 * kv_width, seed=num_keys)
    cache = kernels.new_kv_cache(1, tables.numel(), heads, device.dtype)[0]
    kernels.rope_and_store(qkv, cache, batch_of(device, heads, tables, num_keys, num_keys), layer)
    dense = qkv.view(num_seqs, num_keys, -1)
    ends = (0, width, width + kv_width, width + 2 * kv_width)
    q, k, v = (
        dense[..., first:last].reshape(num_seqs, num_keys, -1, heads.head_dim).transpose(1, 2).contiguous()
        for first, last in pairwise(ends)
    )
    q = q[:, :, num_keys - num_new :].contiguous()
    flat = q.transpose(1, 2).reshape(num_seqs * num_new, width)
    del qkv, dense
    batch = batch_of(device, heads, tables, num_keys, num_new)
    ours: Call = partial(kernels.paged_attention, flat, cache, batch, layer)
    with_torch: Call = partial(
        torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=num_new > 1, enable_gqa=True
    )
    name = f"attention, {num_seqs} x {num_new} tokens over {num_keys} keys"
    expected = as_tensor(with_torch()).transpose(1, 2).reshape(num_seqs * num_new, width)
    check_close(name, as_tensor(ours()), expected, BOUND[device.dtype])
    pairs = num_new * num_keys - num_new * (num_new - 1) / 2
    return KernelCase(
        name,
        device.replayed(ours, shapes.calls),
        device.replayed(with_torch, shapes.calls),
        num_bytes=device.dtype.itemsize
        * (2 * num_seqs * num_keys * kv_width + 2 * num_seqs * num_new * width),
        flops=4.0 * num_seqs * pairs * width,
    )


def batch_of(
    device: Device, heads: HeadLayout, tables: Tensor, num_keys: int, num_new: int
) -> AttentionBatch:
    """The last `num_new` of `num_keys` tokens of each sequence, in positions that rotate nothing."""
    kind, num_seqs = device.kind, len(tables)
    half = heads.head_dim // 2
    positions = torch.arange(num_keys - num_new, num_keys, device=kind)
    slots = tables[:, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    return AttentionBatch(
        rotations=torch.cat(
            [torch.ones(num_keys, half, device=kind), torch.zeros(num_keys, half, device=kind)], 1
        ),
        rotation_rows=positions.int().repeat(num_seqs),
        slots=slots.int().flatten(),
        block_tables=tables,
        query_start=torch.arange(num_seqs + 1, dtype=torch.int32, device=kind) * num_new,
        seq_lens=torch.full((num_seqs,), num_keys, dtype=torch.int32, device=kind),
    )


def product(
    device: Device, kernels: Kernels, shapes: KernelShapes, name: str, num_tokens: int, n: int, k: int
) -> KernelCase:
    """A product beside torch's, with other weights each time."""
    size_bytes = n * k * device.dtype.itemsize
    copies = max(2, min(shapes.calls, -(-COLD_BYTES // size_bytes)))
    weights = [device.random(n, k, seed=seed, scale=k**-0.5) for seed in range(copies)]
    packed = [kernels.pack(weight) for weight in weights]
    rows = device.random(num_tokens, k, seed=99)
    out = torch.empty(num_tokens, n, device=device.kind, dtype=device.dtype)
    expected = rows.double() @ weights[0].double().t()
    check_close(name, kernels.linear(rows, packed[0], out), expected, BOUND[device.dtype])

    def ours() -> None:
        for number in range(shapes.calls):
            kernels.linear(rows, packed[number % copies], out)

    def with_torch() -> None:
        for number in range(shapes.calls):
            torch.mm(rows, weights[number % copies].t(), out=out)

    return KernelCase(
        f"product {name}",
        device.timed(device.captured(ours), shapes.calls),
        device.timed(device.captured(with_torch), shapes.calls),
        num_bytes=size_bytes + device.dtype.itemsize * num_tokens * (n + k),
        flops=2.0 * num_tokens * n * k,
    )


def norm(device: Device, kernels: Kernels, shapes: KernelShapes, num_tokens: int) -> KernelCase:
    """The residual add and RMSNorm beside torch's own operations."""
    size = shapes.hidden_size
    hidden, out = device.random(num_tokens, size, seed=0), torch.empty(num_tokens, size, device=device.kind)
    out = out.to(device.dtype)
    weight = device.random(size, seed=1)
    norms = ResidualNorms(weight, EPS)
    residual = device.random(num_tokens, size, seed=2).float()

    def torchs(added: Tensor) -> Tensor:
        added.add_(hidden)
        return torch.nn.functional.rms_norm(added, (size,), weight.float(), EPS).to(hidden.dtype)

    expected = torchs(residual.clone())
    name = f"add and norm, {num_tokens} tokens"
    check_close(
        name, kernels.add_rms_norm(hidden, residual.clone(), norms, out), expected, BOUND[device.dtype]
    )
    return KernelCase(
        name,
        device.replayed(partial(kernels.add_rms_norm, hidden, residual, norms, out), shapes.calls),
        device.replayed(partial(torchs, residual), shapes.calls),
        num_bytes=num_tokens * size * (2 * device.dtype.itemsize + 2 * 4),
        flops=0.0,
    )


def as_tensor(found: object) -> Tensor:
    """The tensor that a call returned."""
    assert isinstance(found, Tensor)
    return found
