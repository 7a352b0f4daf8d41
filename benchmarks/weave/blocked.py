"""`make bench weave`: the time that weaving hides. Two ranks of one thread; every system on the same weights, in turns.

The primary figure is the time that a rank's compute lane is blocked: it stays clean when the machine is not quiet. It
is that of the rank that computes longest; the others also wait for that one, which no weaving hides. Wall times
are compared pair by pair within a round. Links are *modelled*.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.harness.processes import module_command
from benchmarks.weave.rank import (
    AUTO,
    FUSED,
    NOTHING,
    UNFUSED,
    WIDE,
    WOVEN,
    PassTimes,
    Trial,
    WeaveRank,
    WeaveRankStart,
)
from emucxl.bench.harness import Progress, Report, Samples, interleaved, part_of
from emucxl.shared_memory import SharedSegment, empty_segment_fd
from interlace.errors import BenchError
from interlace.models.batch import ForwardBatch
from tokenweave.communicators.shm_abi import segment_bytes
from tokenweave.link import LinkSpec
from tokenweave.split import middle

if TYPE_CHECKING:
    from interlace.engine.weaving.weaver import Weaver

RANKS = 2
MODELS = ("smollm2", WIDE)
TOKENS = (256, 512, 1024, 2048, 4096, 8192)
LINKS: tuple[str | None, ...] = (None, "2GB/s,5us", "0.5GB/s,5us", "0.25GB/s,5us", "0.1GB/s,5us")
QUICK_TOKENS = (256, 512)
QUICK_LINKS: tuple[str | None, ...] = (None, "0.25GB/s,5us")
RATIOS = ((WOVEN, FUSED), (AUTO, FUSED), (FUSED, UNFUSED), (WOVEN, NOTHING))
LOGITS_DIFFER_BY = 0.1  # of their norm: an unfused sum is rounded to the dtype before it is added
LEAST_HIDDEN = 0.95  # wherever communication is below MOST_COMMUNICATION of compute
MOST_COMMUNICATION = 0.6
MOST_SLOWDOWN = 1.02  # of auto, against fused sequential


@dataclass(frozen=True)
class WeaveOptions:
    """The cases of one run."""

    model: str = "smollm2"
    dtype: str = "auto"
    tokens: tuple[int, ...] = TOKENS
    links: tuple[str | None, ...] = LINKS
    rounds: int = 5

    def __post_init__(self) -> None:
        if not self.tokens or not self.links or min(self.tokens) < 2:
            raise BenchError(
                f"got tokens {self.tokens} and links {self.links}; expected at least one of each, from 2 tokens on"
            )

    @classmethod
    def read(
        cls, model: str, dtype: str, tokens: str, links: str, rounds: int, is_quick: bool
    ) -> WeaveOptions:
        """Reads what the command line says: token counts with commas, links with semicolons, empty: the usual ones.

        Raises:
            BenchError, CommunicatorError: it makes no sense.
        """
        try:
            counts = tuple(int(count) for count in tokens.split(",")) if tokens else None
        except ValueError:
            raise BenchError(f"got the token counts {tokens!r}; expected numbers with commas") from None
        specs = tuple(
            None if text == "none" else str(LinkSpec.parse(text)) for text in links.split(";") if text
        )
        return cls(
            model,
            dtype,
            counts or (QUICK_TOKENS if is_quick else TOKENS),
            specs or (QUICK_LINKS if is_quick else LINKS),
            rounds,
        )


@dataclass(frozen=True)
class WeaveFigures:
    """One number of tokens over one link. All in seconds; blocked and compute of the rank that computes longest."""

    num_tokens: int
    link: str | None
    split: int | None  # of auto
    wall: dict[str, Samples]
    blocked: dict[str, Samples]
    compute: dict[str, Samples]

    @property
    def communication_share(self) -> float:
        """The time of the fused operation when nothing hides it, over that of the compute lane."""
        return self.blocked[FUSED].over(self.compute[FUSED]).median

    @property
    def hidden(self) -> Samples:
        """The share of that which weaving takes out of the compute lane's way."""
        return Samples(tuple(1 - left for left in self.blocked[WOVEN].over(self.blocked[FUSED]).values))

    def ratio(self, ours: str, theirs: str) -> Samples:
        """Wall time over wall time, round by round."""
        return self.wall[ours].over(self.wall[theirs])


class WeaveSession:
    """Rank 0 in this process, the others beside it."""

    def __init__(self, rank: WeaveRank, others: list[subprocess.Popen[bytes]]) -> None:
        self.rank, self._others = rank, others

    def measure(self, trial: Trial) -> tuple[list[PassTimes], torch.Tensor]:
        self.rank.tell(trial)
        return self.rank.measure(trial)

    def weaver(self, link: str | None) -> Weaver:
        """The policy that decides in the engine, over this link."""
        from interlace.engine.weaving.weaver import Weaver

        runner = self.rank.runner
        config = runner.config
        try:
            runner.config = replace(config, weave="auto", link=link)
            return Weaver.of(runner)
        finally:
            runner.config = config

    def close(self) -> None:
        self.rank.tell(None)
        self.rank.close()
        for process in self._others:
            process.wait(10)


@contextmanager
def session(options: WeaveOptions) -> Iterator[WeaveSession]:
    """Start the ranks, which load the model at the same time."""
    links = [link for link in options.links if link is not None]
    with ExitStack() as stack:
        segment = stack.enter_context(SharedSegment.create("bench-weave", segment_bytes(RANKS)))
        symmetric_fd = empty_segment_fd("bench-weave-activations")
        stack.callback(os.close, symmetric_fd)
        others, starts = [], []
        for rank in range(RANKS):
            ports = {link: stack.enter_context(LinkSpec.parse(link).new_port()) for link in links}
            fds = {link: port.fd for link, port in ports.items()}
            starts.append(
                WeaveRankStart(
                    rank, RANKS, options.model, options.dtype, max(options.tokens),
                    segment.fd, segment.size_bytes, symmetric_fd, fds,
                )
            )  # fmt: skip
        for start in starts[1:]:
            others.append(_start(start))
            stack.callback(others[-1].kill)
        running = WeaveSession(WeaveRank(starts[0]), others)
        yield running
        running.close()


def _start(start: WeaveRankStart) -> subprocess.Popen[bytes]:
    command = module_command("benchmarks.weave.rank", json.dumps(asdict(start)))
    fds = (start.segment_fd, start.symmetric_fd, *start.ports.values())
    return subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def measure(options: WeaveOptions, progress: Progress | None = None) -> list[WeaveFigures]:
    """Every number of tokens over every link.

    Raises:
        BenchError: a system's logits are wrong.
    """
    found: list[WeaveFigures] = []
    with session(options) as running:
        weavers = {link: running.weaver(link) for link in options.links}
        for place, num_tokens in enumerate(options.tokens):
            part = part_of(progress, place, len(options.tokens))
            found += _measure(running, weavers, num_tokens, options.rounds, part)
    return found


def _measure(
    running: WeaveSession,
    weavers: Mapping[str | None, Weaver],
    num_tokens: int,
    rounds: int,
    progress: Progress | None,
) -> list[WeaveFigures]:
    batch = ForwardBatch.prefill(num_tokens, running.rank.runner.model_config.vocab_size)
    trials = {NOTHING: Trial(NOTHING, None, num_tokens)}
    for link, weaver in weavers.items():
        splits = {WOVEN: middle(num_tokens, weaver.alignment), AUTO: weaver.split(batch)}
        for system in (UNFUSED, FUSED, WOVEN, AUTO):
            trials[_name(system, link)] = Trial(system, link, num_tokens, splits.get(system))
    _check(running, trials)
    outcomes: dict[str, list[list[PassTimes]]] = {name: [] for name in trials}
    walls = interleaved(
        {name: partial(_sample, running, trial, outcomes[name]) for name, trial in trials.items()},
        rounds,
        progress,
    )

    def of(system: str, link: str | None, value: Callable[[PassTimes], float]) -> Samples:
        return Samples(tuple(value(_busiest(every)) for every in outcomes[_name(system, link)]))

    systems = (NOTHING, UNFUSED, FUSED, WOVEN, AUTO)
    return [
        WeaveFigures(
            num_tokens,
            link,
            trials[_name(AUTO, link)].split,
            {system: walls[_name(system, link)] for system in systems},
            {system: of(system, link, lambda outcome: outcome.blocked_s) for system in systems},
            {system: of(system, link, lambda outcome: outcome.compute_s) for system in systems},
        )
        for link in weavers
    ]


def _sample(running: WeaveSession, trial: Trial, outcomes: list[list[PassTimes]]) -> float:
    """The pass's wall time: that of the slower rank. Keeps every rank's outcome."""
    every, _ = running.measure(trial)
    outcomes.append(every)
    return max(outcome.wall_s for outcome in every)


def _busiest(outcomes: list[PassTimes]) -> PassTimes:
    """That of the rank that computed longest in this pass, and so waited least for the others to compute."""
    return max(outcomes, key=lambda outcome: outcome.compute_s)


def _check(running: WeaveSession, trials: Mapping[str, Trial]) -> None:
    """The warm-up: every system's logits. Woven and fused ones are alike bit for bit, over whatever link."""
    expected: torch.Tensor | None = None
    for name, trial in sorted(trials.items(), key=lambda item: item[1].system != FUSED):
        _, logits = running.measure(trial)
        if expected is None:
            expected = logits.clone()
        if trial.system == NOTHING:
            continue
        if trial.system == UNFUSED:
            is_right = bool((logits - expected).norm() <= LOGITS_DIFFER_BY * expected.norm())
        else:
            is_right = torch.equal(logits, expected)
        if not is_right:
            raise BenchError(
                f"{name}, {trial.num_tokens} tokens: the logits are not those of the fused sequential pass; "
                "nothing was timed"
            )


def report(options: WeaveOptions, found: list[WeaveFigures]) -> Report:
    """One row for each number of tokens and link."""
    return Report(
        name="weave",
        title=f"{options.model}, {RANKS} ranks of one thread: compute lane blocked (ms), and wall times",
        columns=(
            "tokens", "link (modelled)", "comm./compute", "unfused", "fused", "woven", "hidden",
            "wall of none", "woven/fused", "auto/fused", "fused/unfused", "woven/none", "auto at",
        ),
        rows=tuple(_row(each) for each in found),
        notes=(
            f"medians of {options.rounds} interleaved rounds; wall times as ratios by pairs; none: no "
            "communication, the full norm on every rank",
            "blocked: the time in which no step of the compute lane runs, on the rank that computed longest",
            *(f"{target}: {'met' if is_met else 'NOT met'} ({detail})" for target, is_met, detail in targets(found)),
        ),
        results={
            "options": asdict(options),
            "cases": [_to_json(each) for each in found],
            "targets": [
                {"name": name, "is_met": is_met, "detail": detail} for name, is_met, detail in targets(found)
            ],
        },
    )  # fmt: skip


def targets(found: list[WeaveFigures]) -> Iterator[tuple[str, bool, str]]:
    """The project's targets: the name of each, whether it was met, and the worst or best case."""
    fair = [each for each in found if each.link is not None and each.communication_share < MOST_COMMUNICATION]
    if fair:
        worst = min(fair, key=lambda each: each.hidden.median)
        name = f"hidden >= {LEAST_HIDDEN:.0%} where communication < {MOST_COMMUNICATION:.0%} of compute"
        yield name, worst.hidden.median >= LEAST_HIDDEN, f"least {worst.hidden.median:.1%}, {_case(worst)}"
    best = min(found, key=lambda each: each.ratio(WOVEN, NOTHING).median)
    ratio = best.ratio(WOVEN, NOTHING).median
    yield "woven faster than no communication somewhere", ratio < 1, f"best {ratio:.3f}, {_case(best)}"
    worst = max(found, key=lambda each: each.ratio(AUTO, FUSED).median)
    ratio = worst.ratio(AUTO, FUSED).median
    name = f"auto at most {MOST_SLOWDOWN - 1:.0%} slower than fused sequential"
    yield name, ratio <= MOST_SLOWDOWN, f"worst {ratio:.3f}, {_case(worst)}"


def _case(found: WeaveFigures) -> str:
    return f"{found.num_tokens} tokens over {found.link or 'memory'}"


def _row(found: WeaveFigures) -> tuple[str, ...]:
    def ms(samples: Samples) -> str:
        return f"{1e3 * samples.median:,.1f}"

    return (
        str(found.num_tokens),
        found.link or "none",
        f"{found.communication_share:.0%}",
        *(ms(found.blocked[system]) for system in (UNFUSED, FUSED, WOVEN)),
        f"{found.hidden.median:.1%}",
        ms(found.wall[NOTHING]),
        *(f"{found.ratio(*pair).median:.3f}" for pair in RATIOS),
        "-" if found.split is None else str(found.split),
    )


def _to_json(found: WeaveFigures) -> dict[str, Any]:
    return {
        "num_tokens": found.num_tokens,
        "link": found.link,
        "link_kind": None if found.link is None else "modelled",
        "auto_split": found.split,
        "communication_over_compute": found.communication_share,
        "hidden": found.hidden.to_json("share"),
        "systems": {
            system: {
                "wall": found.wall[system].to_json("s"),
                "blocked": found.blocked[system].to_json("s"),
                "compute": found.compute[system].to_json("s"),
            }
            for system in found.wall
        },
        "ratios": {
            f"{ours} / {theirs}": found.ratio(ours, theirs).to_json("ratio") for ours, theirs in RATIOS
        },
    }


def _name(system: str, link: str | None) -> str:
    return system if system == NOTHING else f"{system} over {link or 'memory'}"
