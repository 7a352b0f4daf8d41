"""The fused kernels on one GPU: against separate all-reduce, add and norm, and against copying as many bytes.

    python benchmarks/collectives/fused_cuda.py [--ranks 4] [--hidden-size 4096] [--quick] [--json FILE]

The ranks are streams of this process and share the device's memory: no byte crosses a link, so these figures say what
the kernels cost, not what NVLink gives. `separate` does the same with torch's kernels on every rank: sum of all parts,
residual add, RMSNorm, each over all rows. `copy` moves as many bytes from and to the device's memory as the fused
kernels do together. Every path is checked against the reference before it is timed. Calls are timed in CUDA graphs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from emucxl.bench.harness import Report, Samples, interleaved, table, write_report
from tokenweave.communicators import availability
from tokenweave.errors import KernelError

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
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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
    expected, _ = reference_all_reduce_rms_norm(parts, residual, ranks.weight.cpu(), EPS)
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
    meeting, residual, weight = ranks.meetings[0], ranks.residual[0], ranks.weight
    found = interleaved(
        {
            "switch": timed(lambda: launch.by_switch(meeting, address, rows, residual, weight, EPS)),
            "peers": timed(lambda: ranks.by_peers(0, num_tokens)),
        },
        rounds,
    )
    return (
        f"multimem on a multicast object of this one device, {num_tokens} tokens: {found['switch'].text(1)} us; "
        f"peer pointers with one rank: {found['peers'].text(1)} us"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--num-ctas", type=int, default=16, help="of each rank; all ranks' must fit at once")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="two sizes, three rounds")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    rows, results = [], {}
    for num_tokens in [16, 1024] if options.quick else NUM_TOKENS:
        ranks = OneDevice(
            options.ranks, num_tokens, options.hidden_size, torch.bfloat16, num_ctas=options.num_ctas
        )
        found = interleaved(measures(ranks, num_tokens, options.num_ctas), rounds)
        rows.append(row_of(ranks, num_tokens, found))
        results[str(num_tokens)] = {name: samples.to_json("us") for name, samples in found.items()}
    device = torch.cuda.get_device_name()
    switch = try_switch(options.hidden_size, 1024, rounds)
    report = Report(
        name="fused-cuda",
        title=f"all_reduce_rms_norm, {options.ranks} ranks on one {device}, bf16, hidden {options.hidden_size}, us",
        columns=("tokens", "peers", "one shot", "separate", "separate/peers", "peers GB/s", "copy/peers"),
        rows=tuple(rows),
        notes=(
            "copy/peers: the fraction of the device's copy bandwidth; no byte crosses a link",
            switch,
        ),
        results={"device": device, "num_ctas": options.num_ctas, "tokens": results, "switch": switch},
    )
    Console().print(table(report))
    if options.json:
        print(write_report(report, options.quick, options.json))


if reason := availability()["symm_mem"]:
    raise SystemExit(f"nothing to measure: {reason}")

from tokenweave.kernels.cuda import launch, multicast  # noqa: E402
from tokenweave.kernels.cuda.one_device import OneDevice  # noqa: E402
from tokenweave.kernels.cuda.reference import TOLERANCE, reference_all_reduce_rms_norm  # noqa: E402

if __name__ == "__main__":
    main()
