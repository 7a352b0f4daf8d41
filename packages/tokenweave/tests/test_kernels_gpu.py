"""CudaKernels on a GPU, beyond the contract in test_kernels.py: bits, graphs, and that nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from support.experts import Gated
from support.kernel_cases import DTYPES, PagedSequences, assert_within, ints, randn
from support.moved_kernels import on
from support.stored_cases import random_weight
from tokenweave.kernels import (
    FORMATS,
    HeadLayout,
    Kernels,
    PackedLinear,
    ReferenceKernels,
    ResidualNorms,
    Tolerance,
    dequantise,
    gated_linear,
    linear,
    make_kernels,
)
from tokenweave.kernels.attention import TOLERANCE
from tokenweave.kernels.cuda.available import unavailable_reason

reason = unavailable_reason()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(reason is not None, reason=f"cuda kernels: {reason}")]

if reason is None:
    from tokenweave.kernels.cuda.backend.attention import paged_attention

REFERENCE = ReferenceKernels()
HEADS = HeadLayout(28, tuple(h // 7 for h in range(28)), 128)  # Qwen2.5-7B
LENGTHS = [1, 700, 3000]
CHUNKS = [(0, 0, 1), (1, 600, 700), (2, 2999, 3000)]
FEW_SMS, MANY_SMS = 1, 1000


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return make_kernels("cuda")


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Any call within that makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def stored(dtype: torch.dtype) -> PagedSequences:
    sequences = PagedSequences(REFERENCE, HEADS, LENGTHS, dtype)
    whole = sequences.batch([(s, 0, n) for s, n in enumerate(LENGTHS)])
    REFERENCE.rope_and_store(torch.cat(sequences.qkv), sequences.cache, whole, sequences.layer())
    return sequences


def attend(
    sequences: PagedSequences, chunks: list[tuple[int, int, int]], num_sms: int, **kind: float
) -> Tensor:
    batch, layer = sequences.batch(chunks), sequences.layer(**kind)
    width = HEADS.num_heads * HEADS.head_dim
    q = torch.cat([sequences.qkv[s][first:last, :width] for s, first, last in chunks])
    device = torch.device("cuda", torch.cuda.current_device())
    there = (on(device, each) for each in (q, sequences.cache, batch, layer))
    return paged_attention(*there, device, num_sms).cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [{}, {"sliding_window": 300}, {"softcap": 20.0}], ids=str)
def test_attention_has_the_same_bits_by_few_programs_or_many_and_in_any_pieces(
    dtype: torch.dtype, kind: dict[str, float]
) -> None:
    sequences = stored(dtype)
    whole = attend(sequences, CHUNKS, FEW_SMS, **kind)
    width = HEADS.num_heads * HEADS.head_dim
    q = torch.cat([sequences.qkv[s][first:last, :width] for s, first, last in CHUNKS])
    layer = sequences.layer(**kind)
    expected = REFERENCE.paged_attention(q, sequences.cache, sequences.batch(CHUNKS), layer)
    assert_within(whole, expected, TOLERANCE[dtype])
    assert torch.equal(attend(sequences, CHUNKS, MANY_SMS, **kind), whole)
    for split in (600, 601, 650, 699):
        parts = [*CHUNKS[:1], (1, 600, split)] if split > 600 else CHUNKS[:1]
        rest = [(1, split, 700), CHUNKS[2]]
        for num_sms in (FEW_SMS, MANY_SMS):
            woven = torch.cat([attend(sequences, each, num_sms, **kind) for each in (parts, rest)])
            assert torch.equal(woven, whole)


def layer_of(kernels: Kernels) -> tuple[Callable[[], Tensor], Tensor]:
    """A call of every kernel that a layer makes, on tensors of the device, and what goes in."""
    device, hidden = kernels.device, 512
    sequences = PagedSequences(kernels, HEADS, LENGTHS, torch.bfloat16, head_norms=True)
    batch, layer = on(device, sequences.batch(CHUNKS)), on(device, sequences.layer(300, 20.0))
    width = (HEADS.num_heads + 2 * HEADS.num_kv_heads) * HEADS.head_dim
    sizes = [
        (width, hidden),
        (hidden, HEADS.num_heads * HEADS.head_dim),
        (640, hidden),
        (640, hidden),
        (hidden, 640),
    ]
    qkv, o, gate, up, down = (
        kernels.pack((randn(i, *size) / size[1] ** 0.5).bfloat16(), randn(i, size[0]).bfloat16())
        for i, size in enumerate(sizes)
    )
    norms = ResidualNorms(randn(7, hidden).bfloat16().to(device), 1e-5)
    sequences.cache.zero_()
    x = randn(8, batch.num_tokens, hidden).bfloat16().to(device)

    def run() -> Tensor:
        residual = x.float()
        q = kernels.rope_and_store(kernels.linear(x, qkv), sequences.cache, batch, layer)
        attended = kernels.linear(kernels.paged_attention(q, sequences.cache, batch, layer), o)
        normed = kernels.add_rms_norm(attended, residual, norms)
        return kernels.add_rms_norm(
            kernels.linear(kernels.gated_linear(normed, gate, up), down), residual, norms
        )

    return run, x


def test_no_call_waits_for_the_device(kernels: Kernels) -> None:
    run, _ = layer_of(kernels)
    run()  # compiles, and brings what is kept to the device
    packed, ids = kernels.pack(randn(1, 8, 64)), ints(1, 9).to(kernels.device)
    with nothing_waits():
        run()
        kernels.gather_rows(packed, ids)


def test_a_graph_of_a_layer_gives_what_its_calls_give(kernels: Kernels) -> None:
    run, x = layer_of(kernels)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = run()
    for seed in (1, 2):
        x.copy_(randn(seed, *x.shape).bfloat16())
        graph.replay()
        assert_within(captured.cpu(), run().cpu(), linear.TOLERANCE[torch.bfloat16])


def mixture_of(
    kernels: Kernels, m: int, dtype: torch.dtype
) -> tuple[Callable[[Kernels], Tensor], list[Tensor]]:
    """A mixture of Qwen3-30B-A3B's size but for the number of experts, by any kernels, and what goes in on the GPU."""
    hidden, inner, num_experts, per_row = 2048, 768, 16, 8
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    weights = [[(randn(e, *size) / size[1] ** 0.5).to(dtype) for size in shapes] for e in range(num_experts)]
    shares, chosen = randn(1, m, num_experts).softmax(-1).topk(per_row, dim=-1)
    given = [each.to(kernels.device) for each in (randn(2, m, hidden, dtype=dtype), chosen, shares)]
    packed = {
        each: each.group_experts([Gated(*map(each.pack, expert)) for expert in weights])
        for each in (kernels, REFERENCE)
    }

    def run(each: Kernels) -> Tensor:
        x, where, how_much = (tensor.to(each.device) for tensor in given)
        return each.mixture(x, packed[each], where, how_much)

    return run, given


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("m", [1, 8, 64, 300])
def test_mixtures_equal_the_reference_and_wait_for_nothing(
    kernels: Kernels, m: int, dtype: torch.dtype
) -> None:
    run, _ = mixture_of(kernels, m, dtype)
    run(kernels)  # compiles
    with nothing_waits():
        got = run(kernels)
    # Sums of eight products, rounded to the dtype on the way.
    tolerance = Tolerance(1e-3, 1e-3) if dtype is torch.float32 else Tolerance(1.6e-2, 2e-2)
    assert_within(got.cpu(), run(REFERENCE), tolerance)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("name", [*FORMATS, "fp8"])
def test_products_of_weights_in_blocks_and_in_fp8_are_those_of_their_values(
    kernels: Kernels, name: str, dtype: torch.dtype
) -> None:
    """Of few rows and of many, so that tiles of every size are taken; and nothing waits."""
    n, k = 520, 1024

    def pack(seed: int, dtype: torch.dtype) -> PackedLinear:
        if name == "fp8":
            return kernels.pack_fp8(randn(seed, n, k), dtype=dtype)
        return kernels.pack_stored(random_weight(seed, FORMATS[name], n, k), dtype=dtype)

    ids = torch.arange(n, dtype=torch.int32, device=kernels.device)
    gate, up = (kernels.gather_rows(pack(seed, torch.float32), ids).cpu() for seed in (1, 2))
    if name != "fp8":
        assert torch.equal(gate, dequantise(random_weight(1, FORMATS[name], n, k)))
        gate, up = gate.to(dtype).float(), up.to(dtype).float()
    packed = [pack(seed, dtype) for seed in (1, 2)]
    scale = 1 / (gate.square().mean() * k).sqrt()
    for m in (1, 16, 40, 300):
        x = (randn(3, m, k) * scale).to(dtype)
        there = x.to(kernels.device)
        kernels.linear(there, packed[0])  # compiles
        kernels.gated_linear(there, *packed)
        with nothing_waits():
            got, gated = kernels.linear(there, packed[0]), kernels.gated_linear(there, *packed)
        of_gate, of_up = x.float() @ gate.T, x.float() @ up.T
        assert_within(got.cpu(), of_gate.to(dtype), linear.TOLERANCE[dtype])
        expected = torch.nn.functional.silu(of_gate) * of_up
        assert_within(gated.cpu(), expected.to(dtype), gated_linear.TOLERANCE[dtype])


def test_a_graph_of_a_mixture_follows_other_choices(kernels: Kernels) -> None:
    run, (x, chosen, _) = mixture_of(kernels, 8, torch.bfloat16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(kernels)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = run(kernels)
    for seed in (1, 2):
        x.copy_(randn(seed, *x.shape).bfloat16())
        chosen.copy_((chosen + seed) % 16)
        graph.replay()
        assert torch.equal(captured, run(kernels))


def test_kernels_of_a_thread_run_on_their_own_device(kernels: Kernels) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    other = make_kernels("cuda", device="cuda:1")
    x, weight = randn(1, 3, 64), randn(2, 64)
    got = other.rms_norm(x.to("cuda:1"), weight.to("cuda:1"), 1e-5)
    assert torch.equal(got.cpu(), kernels.rms_norm(x.cuda(), weight.cuda(), 1e-5).cpu())
