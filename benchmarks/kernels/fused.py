"""`make bench fused`: all-reduce, residual add and RMSNorm in one, against the same in two, interleaved.

Two ranks, each a process of one thread on a core of its own. Every system first shows that it computes the right thing.
A system is timed on both ranks at once and takes as long as the slower one says. GB/s counts what the fused operation
has to read and write, of both ranks; the machine's limit is a loop with that mix of reads and writes, on both cores.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.worker import Worker
from emucxl.bench.harness import Progress, Report, Samples, interleaved, part_of
from emucxl.shared_memory import SharedSegment, empty_segment_fd
from interlace.errors import BenchError
from tokenweave.communicators.shm_abi import segment_bytes

RANKS = 2
HIDDEN_SIZE = 4096
TOKENS = (16, 64, 256, 1024, 4096)
QUICK_TOKENS = (16, 256)
DTYPES = ("bfloat16", "float32")
ITEM_BYTES = {"bfloat16": 2, "float32": 4}
FUSED, UNFUSED, VLLM, GLOO = "fused", "unfused", "vllm", "gloo"
LIMIT = "limit"
SAMPLE_S = 0.02  # about how long one sample runs
LIMIT_S = 0.05
OVER_VLLM = {"bfloat16": 3.0, "float32": 2.0}
OVER_UNFUSED = 2.0
OF_LIMIT = 0.8
OF_LIMIT_FROM = 1024  # tokens: fewer stay in caches


@dataclass(frozen=True)
class FusedOptions:
    """The shapes of one run, and the peer's Python."""

    peer_python: str | None = None
    tokens: tuple[int, ...] = TOKENS
    rounds: int = 15

    def __post_init__(self) -> None:
        if not self.tokens or min(self.tokens) < 1 or self.rounds < 1:
            raise BenchError(
                f"got tokens {self.tokens} and {self.rounds} rounds; expected at least one of each"
            )


@dataclass(frozen=True)
class FusedFigures:
    """One shape. Seconds by system; bytes per second that the machine would allow, where memory is what limits."""

    dtype: str
    num_tokens: int
    seconds: dict[str, Samples]
    limit_bytes_per_s: Samples | None = None

    @property
    def moved_bytes(self) -> int:
        """By all ranks: a partial sum of each is read, a float32 residual is updated, an answer is written."""
        return self.num_tokens * HIDDEN_SIZE * ((RANKS + 1) * ITEM_BYTES[self.dtype] + 2 * 4)

    @property
    def bytes_per_s(self) -> float:
        return self.moved_bytes / self.seconds[FUSED].median

    @property
    def of_limit(self) -> Samples | None:
        """The share of what the machine allowed in the same round."""
        if self.limit_bytes_per_s is None:
            return None
        needed_s = Samples(tuple(self.moved_bytes / limit for limit in self.limit_bytes_per_s.values))
        return needed_s.over(self.seconds[FUSED])

    def gain(self, system: str) -> Samples:
        """How many times as long `system` takes as the fused operation, round by round."""
        return self.seconds[system].over(self.seconds[FUSED])

    def targets(self) -> Iterator[tuple[str, float, float]]:
        """Name, what was reached, what was wanted."""
        shape = f"{self.dtype} {self.num_tokens}"
        if VLLM in self.seconds:
            yield f"{shape}: vLLM / fused", self.gain(VLLM).median, OVER_VLLM[self.dtype]
        yield f"{shape}: unfused / fused", self.gain(UNFUSED).median, OVER_UNFUSED
        if self.of_limit is not None:
            yield f"{shape}: of the limit", self.of_limit.median, OF_LIMIT


class RankPair:
    """The two ranks of one environment's systems."""

    def __init__(self, python: str, kind: str) -> None:
        self.workers: list[Worker] = []
        try:
            for _ in range(RANKS):
                self.workers.append(Worker(python, kind))
        except BaseException:
            self.close()
            raise

    def ask(self, op: str, **arguments: Any) -> list[dict[str, Any]]:
        """The same of both at once."""
        return self.ask_each(op, [arguments] * RANKS)

    def ask_each(self, op: str, arguments: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(RANKS) as threads:
            asked = [
                threads.submit(worker.ask, op, **each)
                for worker, each in zip(self.workers, arguments, strict=True)
            ]
            return [reply.result() for reply in asked]

    def seconds(self, system: str, calls: int) -> float:
        """Of one call, on the slower rank."""
        return max(float(reply["seconds"]) for reply in self.ask("time", name=system, calls=calls))

    def limit(self, dtype: str) -> float:
        """Bytes per second of both cores at once."""
        replies = self.ask("limit", dtype=dtype, seconds=LIMIT_S)
        return sum(float(reply["bytes_per_s"]) for reply in replies)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def measure(
    options: FusedOptions, progress: Progress | None = None
) -> tuple[list[FusedFigures], dict[str, Any]]:
    """Every shape, and the versions of what was run.

    Raises:
        BenchError: a system fails, or gives something wrong.
    """
    with _systems(options) as (pairs, versions):
        shapes = [(dtype, num_tokens) for dtype in DTYPES for num_tokens in options.tokens]
        found = []
        for place, (dtype, num_tokens) in enumerate(shapes):
            part = part_of(progress, place, len(shapes))
            found.append(_shape(pairs, dtype, num_tokens, options.rounds, part))
        return found, versions


def _shape(
    pairs: dict[str, RankPair], dtype: str, num_tokens: int, rounds: int, progress: Progress | None
) -> FusedFigures:
    def measure_of(system: str) -> Callable[[], float]:
        pair = pairs[system]
        shape = {"dtype": dtype, "num_tokens": num_tokens, "hidden_size": HIDDEN_SIZE}
        pair.ask("begin", name=system, **shape)
        calls = max(1, round(SAMPLE_S / pair.seconds(system, 2)))
        return lambda: pair.seconds(system, calls)

    measures = {system: measure_of(system) for system in pairs}
    if num_tokens >= OF_LIMIT_FROM:
        measures[LIMIT] = lambda: pairs[FUSED].limit(dtype)
    samples = interleaved(measures, rounds, progress)
    limit = samples.pop(LIMIT, None)
    return FusedFigures(dtype, num_tokens, samples, limit)


@contextmanager
def _systems(options: FusedOptions) -> Iterator[tuple[dict[str, RankPair], dict[str, Any]]]:
    """The ranks by system, ready to be asked."""
    with ExitStack() as stack:
        segment = stack.enter_context(SharedSegment.create("bench-fused", segment_bytes(RANKS)))
        symmetric_fd = empty_segment_fd("bench-fused-activations")
        stack.callback(os.close, symmetric_fd)
        ours = RankPair(sys.executable, "fused")
        stack.callback(ours.close)
        meeting = {
            "segments": [f"/proc/{os.getpid()}/fd/{fd}" for fd in (segment.fd, symmetric_fd)],
            "segment_bytes": segment.size_bytes,
            "most": [max(options.tokens), HIDDEN_SIZE],
            "port": _free_port(),
        }
        versions = {"ours": _load(ours, meeting)}
        pairs = {FUSED: ours, UNFUSED: ours, GLOO: ours}
        if options.peer_python is not None:
            peers = RankPair(options.peer_python, "vllm_shm")
            stack.callback(peers.close)
            versions["vllm"] = _load(peers, {"name": f"bench-fused-{os.getpid()}"})
            peers.ask("join")
            pairs[VLLM] = peers
        yield pairs, versions


def _load(pair: RankPair, arguments: dict[str, Any]) -> dict[str, Any]:
    return pair.ask_each("load", [{"rank": rank, "size": RANKS, **arguments} for rank in range(RANKS)])[0]


def report(options: FusedOptions, found: list[FusedFigures], versions: dict[str, Any]) -> Report:
    """One row for each shape, and the targets that were missed."""
    names = {FUSED: "fused", UNFUSED: "unfused", VLLM: "vLLM", GLOO: "gloo + torch"}
    systems = [system for system in names if system in found[0].seconds]
    missed = [
        f"{name} {got:.2f} (wanted {wanted:g})"
        for each in found
        for name, got, wanted in each.targets()
        if got < wanted
    ]
    return Report(
        name="fused",
        title=f"Sum of {RANKS} ranks' [tokens, {HIDDEN_SIZE}], residual add and RMSNorm: us, median (quartiles)",
        columns=(
            *("dtype", "tokens", *(names[system] for system in systems)),
            *(f"{names[system]} / fused" for system in systems[1:]),
            *("fused GB/s", "limit GB/s", "of the limit"),
        ),
        rows=tuple(_row(each, systems) for each in found),
        notes=(
            f"{options.rounds} interleaved rounds; ratios are medians of ratios within a round",
            "limit: what both cores stream in the same mix of reads and writes, measured in every round",
            "all targets met" if not missed else "missed: " + "; ".join(missed),
        ),
        results={"versions": versions, "shapes": [_to_json(each) for each in found]},
    )


def _row(found: FusedFigures, systems: list[str]) -> tuple[str, ...]:
    def microseconds(samples: Samples) -> str:
        return Samples(tuple(1e6 * value for value in samples.values)).text()

    return (
        *(found.dtype, str(found.num_tokens)),
        *(microseconds(found.seconds[system]) for system in systems),
        *(f"{found.gain(system).median:.1f}" for system in systems[1:]),
        f"{found.bytes_per_s / 1e9:.1f}",
        f"{found.limit_bytes_per_s.median / 1e9:.1f}" if found.limit_bytes_per_s else "-",
        f"{found.of_limit.median:.0%}" if found.of_limit else "-",
    )


def _to_json(found: FusedFigures) -> dict[str, Any]:
    return {
        "dtype": found.dtype,
        "shape": [found.num_tokens, HIDDEN_SIZE],
        "seconds": {system: samples.to_json("s") for system, samples in found.seconds.items()},
        "gain": {system: found.gain(system).to_json("ratio") for system in found.seconds if system != FUSED},
        "bytes_per_s": found.bytes_per_s,
        "limit": found.limit_bytes_per_s and found.limit_bytes_per_s.to_json("B/s"),
        "of_limit": found.of_limit and found.of_limit.to_json("ratio"),
        "targets": [
            {"name": name, "got": got, "wanted": wanted, "is_met": got >= wanted}
            for name, got, wanted in found.targets()
        ],
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
