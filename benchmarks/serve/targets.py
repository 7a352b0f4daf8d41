"""The targets that the project set itself, as ratios taken pair by pair within each round."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness.target import Target
from benchmarks.serve.drive import ServeRun
from benchmarks.serve.participant import Participant
from emucxl.bench.harness import Samples
from interlace.cli.bench.workload import ServeWorkload

PEER_RATIO = 1.25  # Interlace over the peer
STORED_RATIOS = {"prefill": 2.0, "decode": 1.15}  # weights as stored: Interlace over llama.cpp
TWO_RANK_RATIO = 0.95  # two ranks of one thread over one rank of two
COLD_START_S = 5.0


def targets(run: ServeRun) -> list[Target]:
    """Every target that the systems of this run can show; none in a quick run, whose shapes have no targets."""
    if run.options.is_quick:
        return []
    return [*_against_peers(run), *_stored(run), *_two_ranks(run), *_cold_start(run)]


def best_peer(run: ServeRun, workload: ServeWorkload) -> Participant | None:
    """The fastest peer of a workload, by median, in whatever dtype it runs."""
    peers = [participant for participant in run.participants if participant.system.is_peer]
    return max(peers, key=lambda participant: participant.rates(workload).median, default=None)


def fastest_interlace(run: ServeRun, workload: ServeWorkload) -> Participant | None:
    """Interlace on one rank, in the dtype in which this workload is fastest."""
    ours = [
        participant
        for participant in run.participants
        if not participant.system.is_peer and participant.system.ranks == 1
    ]
    return max(ours, key=lambda participant: participant.rates(workload).median, default=None)


def ratio(ours: Participant, theirs: Participant, workload: ServeWorkload) -> Samples:
    """Interlace's tokens/s over the other's, round by round."""
    return ours.rates(workload).over(theirs.rates(workload))


def _against_peers(run: ServeRun) -> Iterator[Target]:
    for workload in run.options.workloads:
        if workload.measure == "prefill":
            pairs = [(fastest_interlace(run, workload), best_peer(run, workload))]
        else:
            dtypes = ("bf16", "f32")
            pairs = [
                (run.participant(f"interlace-{dtype}"), run.participant(f"vllm-{dtype}")) for dtype in dtypes
            ]
        for ours, theirs in pairs:
            if ours is not None and theirs is not None:
                name = f"{workload.name}: {ours.system.name} / {theirs.system.name}"
                yield Target(name, ratio(ours, theirs, workload), PEER_RATIO)


def _stored(run: ServeRun) -> Iterator[Target]:
    ours, theirs = run.participant("interlace-stored"), run.participant("llamacpp")
    if ours is None or theirs is None:
        return
    for workload in run.options.workloads:
        if workload.measure in STORED_RATIOS:
            name = f"{workload.name}: {ours.system.name} / {theirs.system.name}"
            yield Target(name, ratio(ours, theirs, workload), STORED_RATIOS[workload.measure])


def _two_ranks(run: ServeRun) -> Iterator[Target]:
    for dtype in ("bf16", "f32"):
        one, two = run.participant(f"interlace-{dtype}"), run.participant(f"interlace-{dtype}-tp2")
        if one is None or two is None:
            continue
        for workload in run.options.workloads:
            name = f"{workload.name}: {two.system.name} / {one.system.name}"
            yield Target(name, ratio(two, one, workload), TWO_RANK_RATIO)


def _cold_start(run: ServeRun) -> Iterator[Target]:
    for tp, samples in run.cold_start_s.items():
        name = f"cold start to first token, {tp} rank{'s' if tp > 1 else ''} (s)"
        yield Target(name, Samples(tuple(samples)), COLD_START_S, at_most=True)
