"""Hidden: how much of a fetch over a modelled link does not make its request later.

The link is chosen so that fetching takes less than the compute that is left. A request whose beginning is fetched is
compared with one whose beginning is in local memory and which computes the very same rows: what it takes longer was not
hidden. That counts all that a fetch costs the pass, cores and bandwidth that copying takes from computing included; the
metrics of a request have only how long its pass stood still, and would call such time hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.harness.target import Target
from benchmarks.kv.hits import CHECKED_END, FETCH, LOCAL, Hits, measure_copies
from benchmarks.kv.setting import Setting, check_same, first_ms, link_text
from emucxl.bench.harness import Progress, Report, Samples, part_of
from interlace.cli.bench.kv import in_turns
from interlace.cli.bench.tiered import Answer, TieredEngine
from interlace.errors import BenchError

LINK = "over the link"
SHARE = 0.8  # of the compute left, that the link needs: fetching is to matter, and there is to be time for it
ROUNDS = 4  # times those of other rows: a round takes a fraction of a second
LEAST_HIDDEN = 0.9


@dataclass
class Hidden:
    """Answers in pairs, and the seconds of the same fetch with nothing beside it."""

    bandwidth_gbps: float
    answers: dict[str, list[Answer]]
    alone_s: Samples
    notices: list[str]

    def share_of(self, what: str) -> Samples:
        """The hidden share by the clock: by `pass_s`, passes from first step to last; by `first_s`, all of the wait."""
        alone_s = self.alone_s.median
        pairs = zip(self.answers[LINK], self.answers[LOCAL], strict=True)
        return Samples(
            tuple(1 - (getattr(one, what) - getattr(other, what)) / alone_s for one, other in pairs)
        )

    @property
    def by_waits(self) -> Samples:
        """The share of the fetch that the pass did not stand still for: what the engine's metrics call hidden."""
        fetched = (answer for answer in self.answers[LINK] if answer.fetch_s)
        return Samples(tuple(1 - answer.waited_s / answer.fetch_s for answer in fetched))

    def targets(self) -> list[Target]:
        name = "hidden of a fetch over a link with time for it (modelled)"
        return [Target(name, self.share_of("pass_s"), LEAST_HIDDEN)]


def measure(setting: Setting, plain: TieredEngine, hits: Hits, progress: Progress | None = None) -> Hidden:
    """`hits` say how long the pass takes beside which there is to be time.

    Raises:
        BenchError: what is fetched gives other answers, or nothing is fetched.
    """
    left_s = median(answer.pass_s for answer in hits.answers[LOCAL])
    bandwidth_gbps = hits.size_bytes / (SHARE * left_s) / 1e9
    tier = setting.link(bandwidth_gbps)
    with contextlib.closing(setting.engine(tier, kv_fetch="always")) as tiered:
        tiered.prepare()
        if not check_same([tiered], plain, CHECKED_END)[0].num_fetched:
            raise BenchError(f"nothing was fetched over {tier}: there is nothing to hide")
        ways: dict[str, Callable[[], Answer]] = {LINK: tiered.hit, LOCAL: tiered.local_hit}
        answers = in_turns(ways, ROUNDS * setting.rounds, part_of(progress, 0, 2))
        copies, _ = measure_copies(setting, tier, tiered, part_of(progress, 1, 2))
        return Hidden(bandwidth_gbps, answers, copies[FETCH], tiered.notices)


def report(setting: Setting, found: Hidden) -> Report:
    """One row for each way to tell what is hidden."""
    link = f"{link_text(found.bandwidth_gbps)} (modelled)"
    alone_ms = Samples(tuple(1e3 * seconds for seconds in found.alone_s.values))
    shares = {
        "pass: 1 - (pass with the fetch - pass of a local hit) / fetch alone": found.share_of("pass_s"),
        "request: the same of the time to the first token": found.share_of("first_s"),
        "waits: what the pass did not stand still for (metrics of requests)": found.by_waits,
    }
    pass_ms = {
        name: Samples(tuple(1e3 * answer.pass_s for answer in answers))
        for name, answers in found.answers.items()
    }
    fetched = f"{found.answers[LINK][-1].num_fetched:,} tokens fetched"
    return Report(
        name="kv",
        title=f"{setting.model}: the share of a fetch that is hidden; a tier over {link}",
        columns=("by (all modelled)", "hidden"),
        rows=tuple((name, share.extremes_text(2)) for name, share in shares.items()),
        notes=(
            f"{fetched} in {alone_ms.extremes_text(1)} ms alone; passes take {pass_ms[LINK].extremes_text(1)} ms with "
            f"it, and {pass_ms[LOCAL].extremes_text(1)} ms (measured) with the same in local memory",
            f"first tokens: {first_ms(found.answers[LINK]).extremes_text(1)} and "
            f"{first_ms(found.answers[LOCAL]).extremes_text(1)} ms (measured)",
            *found.notices,
        ),
        results={
            "bandwidth_gbps": found.bandwidth_gbps,
            "fetch_alone": found.alone_s.to_json("s", "modelled"),
            "pass_with_fetch": pass_ms[LINK].to_json("ms", "modelled"),
            "pass_of_local_hit": pass_ms[LOCAL].to_json("ms"),
            **{name.partition(":")[0]: share.to_json("1", "modelled") for name, share in shares.items()},
        },
    )
