"""`make bench fused-cuda`: the fused kernels on one GPU beside separate all-reduce, add and norm, and beside a copy.

The ranks are streams of this process and share the device's memory: no byte crosses a link, so these figures say what
the kernels cost, not what NVLink gives. `separate` does the same with torch's kernels on every rank: sum of all parts,
residual add, RMSNorm, each over all rows. `copy` moves as many bytes from and to the device's memory as the fused
kernels do together. Every path is checked against the reference before it is timed. Calls are timed in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from emucxl.bench.harness import Report, Samples, interleaved
from tokenweave.errors import KernelError
from tokenweave.kernels import ResidualNorms
from tokenweave.kernels.cuda import launch, multicast
from tokenweave.kernels.cuda.one_device import OneDevice
from tokenweave.kernels.cuda.reference import TOLERANCE, reference_all_reduce_rms_norm

QUICK_TOKENS = [16, 1024]
NUM_TOKENS = [1, 8, 16, 64, 256, 1024, 4096]
CALLS = 20  # in one graph
EPS = 1e-5

Measure = Callable[[], float]


def timed(call: Callable[[], object]) -> Measure:
    """Microseconds for each of `CALLS` calls in a graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    graph.replay()

    def measure() -> float:
        event: Any = torch.cuda.Event  # untyped in torch
        begin, end = (event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3 / CALLS

    return measure


def check(ranks: OneDevice, kernel: Callable[[int, int], None], num_tokens: int) -> None:
    """Raises unless `kernel` gives the reference from random rows."""
    generator = torch.Generator(device="cuda").manual_seed(num_tokens)
    for hidden, residual in zip(ranks.hidden, ranks.residual, strict=True):
        hidden.normal_(generator=generator)
        residual.fill_(0.5)
    parts = [hidden[:num_tokens].cpu() for hidden in ranks.hidden]
    residual = ranks.residual[0][:num_tokens].cpu()
    expected, _ = reference_all_reduce_rms_norm(parts, residual, ResidualNorms(ranks.weight.cpu(), EPS))
    ranks.on_all_ranks(kernel, num_tokens)
    torch.cuda.synchronize()
    tolerance = TOLERANCE[expected.dtype]
    for hidden in ranks.hidden:
        got = hidden[:num_tokens].cpu()
        torch.testing.assert_close(got, expected, rtol=tolerance.rtol, atol=tolerance.atol)


def separate(ranks: OneDevice, rank: int, num_tokens: int) -> None:
    """All-reduce, residual add and RMSNorm of all rows, on one rank."""
    total = ranks.hidden[0][:num_tokens]
    for other in ranks.hidden[1:]:
        total = total + other[:num_tokens]
    residual = ranks.residual[rank][:num_tokens].add_(total)
    torch.nn.functional.rms_norm(residual, residual.shape[-1:], ranks.weight.float(), EPS).to(total.dtype)


def copy_of(num_bytes: int) -> Callable[[], object]:
    """A copy that reads and writes `num_bytes` together."""
    source = torch.zeros(num_bytes // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return partial(target.copy_, source)


def measures(ranks: OneDevice, num_tokens: int, one_shot_tokens: int) -> dict[str, Measure]:
    check(ranks, ranks.by_peers, num_tokens)
    found = {"peers": timed(lambda: ranks.on_all_ranks(ranks.by_peers, num_tokens))}
    if num_tokens <= one_shot_tokens:
        check(ranks, ranks.in_one_shot, num_tokens)
        found["one shot"] = timed(lambda: ranks.on_all_ranks(ranks.in_one_shot, num_tokens))
    found["separate"] = timed(lambda: ranks.on_all_ranks(partial(separate, ranks), num_tokens))
    found["copy"] = timed(copy_of(bytes_moved(ranks, num_tokens)))
    return found


def bytes_moved(ranks: OneDevice, num_tokens: int) -> int:
    """By the peer-pointer path on all ranks together: every part read and written once, the residual shard by shard."""
    row = ranks.hidden[0].shape[1]
    return num_tokens * row * (2 * ranks.size * ranks.hidden[0].itemsize + 2 * 4)


def row_of(ranks: OneDevice, num_tokens: int, found: dict[str, Samples]) -> tuple[str, ...]:
    gbps = bytes_moved(ranks, num_tokens) / found["peers"].median / 1e3
    one_shot = found["one shot"].text(1) if "one shot" in found else "-"
    return (
        str(num_tokens),
        found["peers"].text(1),
        one_shot,
        found["separate"].text(1),
        found["separate"].over(found["peers"]).text(2),
        f"{gbps:,.0f}",
        found["copy"].over(found["peers"]).text(2),
    )


def try_switch(hidden_size: int, num_tokens: int, rounds: int) -> str:
    """Times the switch's path over a multicast object of this device alone, or says why it cannot be had."""
    try:
        local, address = multicast.allocate(num_tokens * hidden_size * 2)
    except KernelError as error:
        return f"multimem: not measured: {error}"
    ranks = OneDevice(1, num_tokens, hidden_size, torch.bfloat16)
    rows = local.view(torch.bfloat16).view(num_tokens, hidden_size)
    meeting, residual, norms = ranks.meetings[0], ranks.residual[0], ranks.norms(EPS)
    found = interleaved(
        {
            "switch": timed(lambda: launch.by_switch(meeting, address, rows, residual, norms)),
            "peers": timed(lambda: ranks.by_peers(0, num_tokens)),
        },
        rounds,
    )
    return (
        f"multimem on a multicast object of this one device, {num_tokens} tokens: {found['switch'].text(1)} us; "
        f"peer pointers with one rank: {found['peers'].text(1)} us"
    )


def run(size: int, hidden_size: int, num_ctas: int, rounds: int, quick: bool = False) -> Report:
    """Every number of tokens, over `size` ranks of `num_ctas` thread blocks each."""
    rows, results = [], {}
    for num_tokens in QUICK_TOKENS if quick else NUM_TOKENS:
        ranks = OneDevice(size, num_tokens, hidden_size, torch.bfloat16, num_ctas=num_ctas)
        found = interleaved(measures(ranks, num_tokens, num_ctas), rounds)
        rows.append(row_of(ranks, num_tokens, found))
        results[str(num_tokens)] = {name: samples.to_json("us") for name, samples in found.items()}
    device = torch.cuda.get_device_name()
    switch = try_switch(hidden_size, 1024, rounds)
    return Report(
        name="fused-cuda",
        title=f"all_reduce_rms_norm, {size} ranks on one {device}, bf16, hidden {hidden_size}, us",
        columns=("tokens", "peers", "one shot", "separate", "separate/peers", "peers GB/s", "copy/peers"),
        rows=tuple(rows),
        notes=(
            "copy/peers: the fraction of the device's copy bandwidth; no byte crosses a link",
            switch,
        ),
        results={"device": device, "num_ctas": num_ctas, "tokens": results, "switch": switch},
    )
