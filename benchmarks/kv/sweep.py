"""Sweep: fetching everything, computing everything, and what the engine chooses, over links of many speeds.

The links are modelled. Their speeds are told by the one at which fetching a beginning takes as long as computing it, as
this machine computes: there, doing both at once should be quicker than either ("Cake": the front is computed while the
back is fetched, until they meet). At the slowest one fetching is so dear that it should be let alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from benchmarks.harness.target import Target
from benchmarks.kv.hits import CHECKED_END, COMPUTED, Hits
from benchmarks.kv.setting import MOST_GBPS, Setting, check_same, first_ms, link_text
from emucxl.bench.harness import Progress, Report, Samples, part_of
from interlace.cli.bench.kv import in_turns
from interlace.cli.bench.tiered import Answer, TieredEngine

SPEEDS = (0.25, 0.6, 1.0, 1.6, 4.0, 40.0)  # over the speed at which fetching takes as long as computing
QUICK_SPEEDS = (0.25, 1.0)
CHOICE, FETCHED = "the engine's choice", "all fetched"
CLOSE = 1.5  # two ways whose times are within this ratio
DEAR = 3.0  # times computing, that fetching takes, from where on fetching everything isn't even tried
MOST_OF_BETTER, MOST_WHERE_CLOSE, MOST_WHERE_DEAR = 1.03, 1.0, 1.03


@dataclass
class LinkFigures:
    """One link: the answers of each way, round by round. Where fetching is dear, nobody fetches everything."""

    bandwidth_gbps: float
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def is_dear(self) -> bool:
        return FETCHED not in self.answers

    @property
    def better(self) -> str:
        """The quicker one of the two pure ways, by medians."""
        pure = (name for name in (FETCHED, COMPUTED) if name in self.answers)
        return min(pure, key=lambda name: first_ms(self.answers[name]).median)

    @property
    def are_close(self) -> bool:
        if self.is_dear:
            return False
        ratio = first_ms(self.answers[FETCHED]).median / first_ms(self.answers[COMPUTED]).median
        return 1 / CLOSE <= ratio <= CLOSE

    @property
    def over_better(self) -> Samples:
        return first_ms(self.answers[CHOICE]).over(first_ms(self.answers[self.better]))


def measure(
    setting: Setting, plain: TieredEngine, hits: Hits, progress: Progress | None = None
) -> list[LinkFigures]:
    """`hits` say how long computing takes.

    Raises:
        BenchError: an answer has other bits than without a tier.
    """
    computed_s = median(answer.first_s for answer in hits.answers[COMPUTED])
    even_gbps = hits.size_bytes / computed_s / 1e9
    speeds = QUICK_SPEEDS if setting.is_quick else SPEEDS
    found = []
    for place, speed in enumerate(speeds):
        gbps = min(speed * even_gbps, MOST_GBPS)
        share = part_of(progress, place, len(speeds), link_text(gbps))
        found.append(_measure_link(setting, plain, gbps, speed <= 1 / DEAR, share))
    return found


def _measure_link(
    setting: Setting, plain: TieredEngine, gbps: float, is_dear: bool, progress: Progress | None
) -> LinkFigures:
    tier = setting.link(gbps)
    with contextlib.ExitStack() as stack:
        engines: dict[str, TieredEngine] = {}
        for name, fetch in ((CHOICE, "auto"),) if is_dear else ((CHOICE, "auto"), (FETCHED, "always")):
            engines[name] = stack.enter_context(contextlib.closing(setting.engine(tier, kv_fetch=fetch)))
            if progress is not None:
                progress(0.0, f"{name}: writing down")
            engines[name].prepare()
        check_same([*engines.values()], plain, CHECKED_END)
        ways: dict[str, Callable[[], Answer]] = {name: engine.hit for name, engine in engines.items()}
        ways[COMPUTED] = plain.computed
        answers = in_turns(ways, min(setting.rounds, 3), progress)
        return LinkFigures(gbps, answers, engines[CHOICE].notices)


def targets(found: list[LinkFigures]) -> list[Target]:
    """The worst link of each kind."""
    kinds = (
        ("choice / better pure way, worst link (modelled)", MOST_OF_BETTER, lambda each: not each.is_dear),
        ("choice / better pure way, where they are close (modelled)", MOST_WHERE_CLOSE, lambda each: each.are_close),
        ("a tier that is dearer than computing / no tier (modelled)", MOST_WHERE_DEAR, lambda each: each.is_dear),
    )  # fmt: skip
    chosen = ((name, wanted, [each for each in found if is_of(each)]) for name, wanted, is_of in kinds)
    return [
        Target(name, max((each.over_better for each in links), key=lambda ratio: ratio.median), wanted, True)
        for name, wanted, links in chosen
        if links
    ]


def report(setting: Setting, found: list[LinkFigures]) -> Report:
    """One row for each link."""
    shapes = setting.shapes
    return Report(
        name="kv",
        title=f"{setting.model}: first token of {shapes.num_tokens:,} tokens of which a tier has {shapes.num_found:,}, "
        "by the link to it",
        columns=(
            *("link (modelled)", f"{FETCHED} ms (modelled)", f"{COMPUTED} ms (measured)"),
            *(f"{CHOICE} ms (modelled)", "tokens fetched: all, chosen", "over the better"),
        ),
        rows=tuple(
            (
                link_text(each.bandwidth_gbps),
                "" if each.is_dear else first_ms(each.answers[FETCHED]).extremes_text(),
                *(first_ms(each.answers[name]).extremes_text() for name in (COMPUTED, CHOICE)),
                ", ".join(
                    f"{each.answers[name][-1].num_fetched:,}"
                    for name in (FETCHED, CHOICE)
                    if name in each.answers
                ),
                each.over_better.extremes_text(3),
            )
            for each in found
        ),
        notes=(
            f"medians (extremes) of {len(found[0].answers[CHOICE])} rounds in turns; tokens and logprob bits are those "
            "without a tier",
            f"where fetching takes {DEAR:g} times as long as computing it is not tried to fetch everything",
            *dict.fromkeys(notice for each in found for notice in each.notices),
        ),
        results={"links": [_record(each) for each in found]},
    )


def _record(each: LinkFigures) -> dict[str, object]:
    return {
        "bandwidth_gbps": each.bandwidth_gbps,
        "fetched_tokens": [answer.num_fetched for answer in each.answers[CHOICE]],
        **{
            name: first_ms(answers).to_json("ms", "measured" if name == COMPUTED else "modelled")
            for name, answers in each.answers.items()
        },
        "over_better": each.over_better.to_json("1", "modelled"),
    }
