"""The fused operation with all its ranks on one GPU: beside separate kernels, beside a copy of as many bytes.

No byte crosses a link: the figures say what the kernels cost, not what NVLink gives. `separate` does the same by
torch's kernels on every rank: sum of all parts, residual add, RMSNorm, each over all rows. `copy` moves as many bytes
by the whole device, `copy N` by as many CTAs as the ranks' kernels have together. Rows of few tokens stay in the L2
cache between calls, for all of them alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.device import Call, Device, Measure, RankKernel
from benchmarks.gpu.findings import Finding, Verdict, asked
from benchmarks.gpu.registers import Registers, registers_of
from benchmarks.gpu.stage import StageJob
from benchmarks.kernels.fused_cuda import EPS, bytes_moved, separate
from emucxl.bench.harness import Samples, interleaved
from tokenweave.errors import KernelError
from tokenweave.kernels.arguments import ResidualNorms
from tokenweave.kernels.cuda.reference import TOLERANCE, reference_all_reduce_rms_norm
from tokenweave.kernels.cuda.sharing import shard

if TYPE_CHECKING:
    from tokenweave.kernels.cuda.one_device import OneDevice

PEERS, ONE_SHOT, SEPARATE, COPY = "peers", "one shot", "separate", "copy"
WANTED_GAIN = 1.5  # over separate kernels
WANTED_OF_COPY = 0.8
COPY_BLOCK = 16384  # words that a CTA of 1024 threads copies at once: 64 bytes a thread


@dataclass(frozen=True)
class Grid:
    """The shapes that are measured, and how often."""

    hidden_sizes: tuple[int, ...]
    num_ctas: tuple[int, ...]  # of each rank
    tokens: tuple[int, ...]
    rounds: int
    calls: int  # in a graph


FULL = Grid((4096, 8192), (2, 4, 8, 16), (1, 16, 64, 256, 1024, 2048), rounds=7, calls=20)
QUICK = Grid((8192,), (4, 16), (16, 2048), rounds=3, calls=10)
DRY = Grid((64,), (1, 2), (1, 3), rounds=1, calls=1)


@dataclass(frozen=True)
class FusedCase:
    """The times of one group of ranks, in microseconds, by number of tokens and by path and CTAs."""

    size: int
    hidden_size: int
    times: dict[int, dict[str, Samples]]
    moved_bytes: dict[int, int]  # by all ranks together
    registers: tuple[Registers, ...]

    def best(self, num_tokens: int) -> str:
        """The fastest of the fused paths."""
        found = self.times[num_tokens]
        return min((name for name in found if is_fused(name)), key=lambda name: found[name].median)

    def gain(self, num_tokens: int, over: str) -> float:
        """How many times as fast the best path is."""
        found = self.times[num_tokens]
        return found[over].over(found[self.best(num_tokens)]).median

    def gbps(self, num_tokens: int, name: str) -> float:
        return self.moved_bytes[num_tokens] / self.times[num_tokens][name].median / 1e3

    def to_json(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "hidden_size": self.hidden_size,
            "moved_bytes": self.moved_bytes,
            "times": {
                tokens: {name: samples.to_json("us") for name, samples in found.items()}
                for tokens, found in self.times.items()
            },
            "registers": [asdict(each) for each in self.registers],
        }


def run(job: StageJob) -> None:
    grid = DRY if job.options.is_dry_run else QUICK if job.options.is_quick else FULL
    sizes = job.device.num_ranks[:1] if job.options.is_quick else job.device.num_ranks
    cases: list[FusedCase] = []
    for size in sizes:
        for hidden_size in grid.hidden_sizes:
            cases.append(measure(job.device, grid, size, hidden_size))
            job.told.keep(cases=[case.to_json() for case in cases])
            job.told.show(*findings(cases[-1]))
    found, times = on_multicast(job.device, grid)
    job.told.keep(multicast=times)
    job.told.show(*found)


def measure(device: Device, grid: Grid, size: int, hidden_size: int) -> FusedCase:
    """Checks and times every path with every number of CTAs."""
    groups = {ctas: device.ranks(size, max(grid.tokens), hidden_size, ctas) for ctas in grid.num_ctas}
    for ranks in groups.values():
        for num_tokens in grid.tokens:
            for path, kernel in kernels(ranks, num_tokens):
                check(device, ranks, kernel, num_tokens, path)
    times = {}
    for num_tokens in grid.tokens:
        times[num_tokens] = interleaved(measures(device, groups, num_tokens, grid.calls), grid.rounds)
        for ranks in groups.values():
            check_all_came(ranks)
    some = next(iter(groups.values()))
    moved_bytes = {num_tokens: bytes_moved(some, num_tokens) for num_tokens in grid.tokens}
    return FusedCase(size, hidden_size, times, moved_bytes, tuple(compiled()))


def kernels(ranks: OneDevice, num_tokens: int) -> Iterator[tuple[str, RankKernel]]:
    """The fused paths that this group can take for so many tokens."""
    yield PEERS, ranks.by_peers
    if num_tokens <= ranks.meetings[0].num_ctas:
        yield ONE_SHOT, ranks.in_one_shot


def measures(device: Device, groups: dict[int, OneDevice], num_tokens: int, calls: int) -> dict[str, Measure]:
    """Every path with every number of CTAs, separate kernels, and copies."""
    found: dict[str, Measure] = {}
    for ctas, ranks in groups.items():
        for path, kernel in kernels(ranks, num_tokens):
            found[f"{path} {ctas}"] = device.replayed(
                partial(device.on_all_ranks, ranks, kernel, num_tokens), calls
            )
    some = next(iter(groups.values()))
    found[SEPARATE] = device.replayed(
        partial(device.on_all_ranks, some, partial(separate, some), num_tokens), calls
    )
    source, target, copies = copies_of(device, bytes_moved(some, num_tokens), list(groups), some.size)
    for name, copy in copies.items():
        target.zero_()
        copy()
        if not torch.equal(source, target):
            raise ArithmeticError(f"{name} is not what was copied")
        found[name] = device.replayed(copy, calls)
    return found


def copies_of(
    device: Device, moved_bytes: int, num_ctas: list[int], size: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Call]]:
    """Copies that read and write `moved_bytes` together: by the device, and by `size` times so many CTAs."""
    from benchmarks.gpu.standins import copy_kernel

    vectors = -(-moved_bytes // 2 // 64)  # of 16 words
    source = torch.arange(16 * vectors, dtype=torch.int32, device=device.kind)
    target = torch.zeros_like(source)
    copies: dict[str, Call] = {COPY: partial(target.copy_, source)}
    for ctas in num_ctas:
        launch = copy_kernel[(ctas * size,)]
        copies[f"{COPY} {ctas}"] = partial(launch, source, target, vectors, BLOCK=COPY_BLOCK, num_warps=32)
    return source, target, copies


def check(device: Device, ranks: OneDevice, kernel: RankKernel, num_tokens: int, path: str) -> None:
    """Raises AssertionError unless `kernel` gives the reference: the rows on every rank, the residual by its owners."""
    fill(device, ranks, num_tokens)
    parts = [hidden[:num_tokens].clone() for hidden in ranks.hidden]
    norms = ResidualNorms(ranks.weight, EPS)
    expected, summed = reference_all_reduce_rms_norm(parts, ranks.residual[0][:num_tokens], norms)
    device.on_all_ranks(ranks, kernel, num_tokens)
    device.synchronize()
    check_all_came(ranks)
    bound = TOLERANCE[expected.dtype]
    for rank in range(ranks.size):
        got = ranks.hidden[rank][:num_tokens]
        torch.testing.assert_close(got, expected, rtol=bound.rtol, atol=bound.atol)
        owned = range(num_tokens) if path == ONE_SHOT else shard(num_tokens, rank, ranks.size)
        rows = slice(owned.start, owned.stop)
        torch.testing.assert_close(ranks.residual[rank][rows], summed[rows], rtol=1e-5, atol=1e-5)


def fill(device: Device, ranks: OneDevice, num_tokens: int) -> None:
    """Gives every rank rows of its own, and all the same residual."""
    hidden_size = ranks.weight.shape[0]
    residual = device.random(num_tokens, hidden_size, seed=99).float()
    ranks.weight.copy_(device.random(hidden_size, seed=98))
    for rank in range(ranks.size):
        ranks.hidden[rank][:num_tokens] = device.random(num_tokens, hidden_size, seed=rank)
        ranks.residual[rank][:num_tokens] = residual


def check_all_came(ranks: OneDevice) -> None:
    """Raises TimeoutError if a rank waited for another in vain."""
    said = [int(meeting.mailbox[0]) for meeting in ranks.meetings]
    if any(said):
        raise TimeoutError(f"a rank of {ranks.size} on one device waited in vain: their mailboxes say {said}")


def compiled() -> list[Registers]:
    """The registers of the fused kernels that have been launched so far."""
    from tokenweave.kernels.cuda.one_shot import one_shot_kernel
    from tokenweave.kernels.cuda.peer import peer_kernel

    return [*registers_of(PEERS, peer_kernel), *registers_of(ONE_SHOT, one_shot_kernel)]


def findings(case: FusedCase) -> Iterator[Finding]:
    """The rows of one group: its worst gain over separate kernels, how near it is to a copy, its registers."""
    what = f"{case.size} ranks, hidden {case.hidden_size}"
    worst = min(case.times, key=lambda tokens: case.gain(tokens, SEPARATE))
    gain = case.gain(worst, SEPARATE)
    got = f"{gain:.2f} at {worst} tokens ({case.best(worst)} CTAs)"
    yield asked(f"{what}: separate / fused", got, f">= {WANTED_GAIN} always", gain >= WANTED_GAIN)
    yield of_copy(case, what)
    if case.registers:
        seen = sorted({each.text for each in case.registers})
        spilled = sum(each.spilled for each in case.registers)
        got = f"{'; '.join(seen)}; {spilled} words spilled"
        yield asked(f"{what}: registers, all so far", got, "no spills", spilled == 0)


def of_copy(case: FusedCase, what: str) -> Finding:
    """The most tokens, where bytes count for most: the fraction of a copy's rate."""
    tokens = max(case.times)
    best = case.best(tokens)
    fraction = case.gain(tokens, COPY)
    alike = case.gain(tokens, f"{COPY} {best.split()[-1]}")
    got = f"{fraction:.0%} at {case.gbps(tokens, best):,.0f} GB/s ({best} CTAs; {alike:.0%} of a copy by as many CTAs)"
    target = f">= {WANTED_OF_COPY:.0%}"
    return asked(f"{what}, {tokens} tokens: of a copy", got, target, fraction >= WANTED_OF_COPY)


def is_fused(name: str) -> bool:
    return name != SEPARATE and not name.startswith(COPY)


def on_multicast(device: Device, grid: Grid) -> tuple[list[Finding], dict[str, Any]]:
    """The switch's path on a multicast object of this one device, where that can be had."""
    what = "multicast object of one device"
    if device.kind != "cuda":
        return [Finding(what, "needs a GPU", "", Verdict.NOT_RUN)], {}
    from tokenweave.kernels.cuda import launch, multicast
    from tokenweave.kernels.cuda.multimem import multimem_kernel

    num_tokens, hidden_size = max(grid.tokens), max(grid.hidden_sizes)
    try:
        local, address = multicast.allocate(num_tokens * hidden_size * device.dtype.itemsize)
    except (KernelError, OSError) as error:
        return [Finding(what, str(error), "", Verdict.NOT_RUN)], {}
    rows = local.view(device.dtype).view(num_tokens, hidden_size)
    groups = {ctas: device.ranks(1, num_tokens, hidden_size, ctas) for ctas in grid.num_ctas}
    found: dict[str, Measure] = {}
    for ctas, ranks in groups.items():
        ranks.hidden[0] = rows  # what the check fills and looks at

        def by_switch(rank: int, tokens: int, ranks: OneDevice = ranks) -> None:
            residual = ranks.residual[0][:tokens]
            launch.by_switch(ranks.meetings[0], address, rows[:tokens], residual, ranks.norms(EPS))

        for tokens in grid.tokens:
            check(device, ranks, by_switch, tokens, "switch")
        found[f"switch {ctas}"] = device.replayed(partial(by_switch, 0, num_tokens), grid.calls)
    moved_bytes = bytes_moved(ranks, num_tokens)
    _, _, copies = copies_of(device, moved_bytes, list(groups), 1)
    found |= {name: device.replayed(copy, grid.calls) for name, copy in copies.items()}
    times = {num_tokens: interleaved(found, grid.rounds)}
    for ranks in groups.values():
        check_all_came(ranks)
    case = FusedCase(
        1, hidden_size, times, {num_tokens: moved_bytes}, tuple(registers_of("switch", multimem_kernel))
    )
    return [of_copy(case, f"{what}, hidden {hidden_size}")], case.to_json()
