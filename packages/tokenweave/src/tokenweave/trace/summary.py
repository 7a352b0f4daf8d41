"""Summarises a trace: computing, communication and memory hidden and exposed, how long compute lanes stood still.

Communication, and what the memory lane does, is *hidden* while the same rank's compute lane is inside a step, *exposed*
otherwise: neither hides the other. A compute lane is *blocked* from its pass's first step to its last, of any lane,
whenever it is inside none. It is blocked by the memory lane while the step that it runs next waits for one of that
lane's, or, after its last step, while that lane is not done; what it waits for besides is not asked. Where lanes share
a core, a computing step takes longer while a transfer or a copy needs the core; that shows as computing.

Beside each stands what the simulator makes of the pass's plan, *modelled*: once with each step at what it took, which
tells whether lanes and edges alone explain the pass, and once with each at the median of its kind, over the layers,
which tells what the pass would take undisturbed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from tokenweave.plan import Lane, Plan, Step
from tokenweave.simulate import Cost, Phase, Resource, simulate
from tokenweave.trace.recording import Pass, Span
from tokenweave.trace.trace import Trace


@dataclass
class Figures:
    """Seconds. Of several ranks or passes: summed, or as `mean` says."""

    total_s: float = 0.0
    compute_s: float = 0.0
    communication_s: float = 0.0
    hidden_s: float = 0.0  # of communication_s
    memory_s: float = 0.0
    memory_hidden_s: float = 0.0
    blocked_s: float = 0.0
    memory_blocked_s: float = 0.0  # of blocked_s
    modelled_total_s: float = 0.0
    modelled_blocked_s: float = 0.0
    undisturbed_total_s: float = 0.0

    @property
    def exposed_s(self) -> float:
        return self.communication_s - self.hidden_s

    @property
    def hidden_fraction(self) -> float:
        """1 where there is no communication."""
        return self.hidden_s / self.communication_s if self.communication_s > 0 else 1.0

    @property
    def memory_exposed_s(self) -> float:
        return self.memory_s - self.memory_hidden_s

    @property
    def memory_hidden_fraction(self) -> float:
        """1 where the memory lane did nothing."""
        return self.memory_hidden_s / self.memory_s if self.memory_s > 0 else 1.0

    def add(self, other: Figures, share: float = 1.0) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + share * getattr(other, name))


def mean(figures: Iterable[Figures]) -> Figures:
    """Their mean; zeros of none."""
    every, found = list(figures), Figures()
    for each in every:
        found.add(each, 1 / len(every))
    return found


@dataclass(frozen=True)
class Kind:
    """Passes of one shape."""

    num_tokens: int
    split: int | None


@dataclass
class Summary:
    """Seconds; in `ranks` of each rank, elsewhere the mean over the ranks."""

    num_passes: int
    num_dropped: int
    clock: str
    ranks: dict[int, Figures] = field(default_factory=dict)
    kinds: dict[Kind, tuple[int, Figures]] = field(
        default_factory=dict
    )  # how many passes, all of them together
    layers: dict[str, Figures] = field(default_factory=dict)  # "embedding", "0", "1", ..., "output"
    moves: dict[str, Figures] = field(default_factory=dict)  # by operation of the memory lane: "fetch", ...

    @property
    def total(self) -> Figures:
        return mean(self.ranks.values())


def summarise(trace: Trace) -> Summary:
    """The figures of `trace`. Costs: a simulation for each pass of each rank."""
    size = max(1, len(trace.recordings))
    num_passes = max((len(recording.passes) for recording in trace.recordings), default=0)
    summary = Summary(num_passes, trace.num_dropped, trace.clock)
    counts: dict[Kind, int] = {}
    kinds: dict[Kind, Figures] = {}
    layers: dict[str, Figures] = {}
    for recording in trace.recordings:
        summary.ranks[recording.rank] = own = Figures()
        for done in recording.passes:
            figures = measure(done, layers, 1 / size, summary.moves)
            kind = Kind(done.plan.num_tokens, done.plan.split)
            own.add(figures)
            kinds.setdefault(kind, Figures()).add(figures, 1 / size)
            counts[kind] = counts.get(kind, 0) + (recording is trace.recordings[0])
    slowest_first = sorted(kinds, key=lambda kind: -kinds[kind].total_s)
    summary.kinds = {kind: (counts.get(kind, 0), kinds[kind]) for kind in slowest_first}
    summary.layers = {name: layers[name] for name in sorted(layers, key=_layer_order)}
    return summary


def measure(
    done: Pass,
    layers: dict[str, Figures] | None = None,
    share: float = 1.0,
    moves: dict[str, Figures] | None = None,
) -> Figures:
    """One pass of one rank; `share` of what belongs to each layer is added to `layers`, and of what belongs to each
    operation of the memory lane to `moves`."""
    spans = list(done.spans())
    if not spans:
        return Figures()
    overlap = _Overlap([span for span in spans if span.step.lane is Lane.COMPUTE])
    figures = Figures(total_s=max(span.end_s for span in spans) - min(span.start_s for span in spans))
    for span in spans:
        seconds = span.end_s - span.start_s
        if span.step.lane is Lane.COMPUTE:
            own = Figures(compute_s=seconds)
        elif span.step.lane is Lane.MEMORY:
            own = Figures(memory_s=seconds, memory_hidden_s=overlap.within(span))
            if moves is not None:
                moves.setdefault(span.step.op.label, Figures()).add(own, share)
        else:
            own = Figures(communication_s=seconds, hidden_s=overlap.within(span))
        figures.add(own)
        if layers is not None:
            layers.setdefault(layer_of(span.position, done.plan), Figures()).add(own, share)
    figures.blocked_s = figures.total_s - figures.compute_s
    figures.memory_blocked_s = _blocked_by_memory_s(spans)
    # Each lane has a core: what they take from each other is in the times already.
    taken, typical = costs_of(done)
    timeline = simulate(done.plan, taken, shared_core=False)
    figures.modelled_total_s, figures.modelled_blocked_s = timeline.total_s, timeline.blocked_s
    figures.undisturbed_total_s = simulate(done.plan, typical, shared_core=False).total_s
    return figures


def _blocked_by_memory_s(spans: list[Span]) -> float:
    """How long the compute lane was inside no step while the memory lane kept it from the next, or the pass from its
    end. `spans` are those of a pass, in the order of its plan."""
    ends = {span.position: span.end_s for span in spans if span.step.lane is Lane.MEMORY}
    blocked_s, free_s = 0.0, min(span.start_s for span in spans)
    for span in spans:
        if span.step.lane is Lane.COMPUTE:
            awaited = [ends[other] for other in span.step.waits_for if other in ends]
            blocked_s += max(0.0, min(span.start_s, max(awaited, default=free_s)) - free_s)
            free_s = span.end_s
    return blocked_s + max(0.0, max(ends.values(), default=free_s) - free_s)


def costs_of(done: Pass) -> tuple[Cost, Cost]:
    """The price of each step: what it took, and the median of what the pass's steps of its kind took."""
    own: dict[int, float] = {}
    alike: dict[object, list[float]] = {}
    for span in done.spans():
        own[id(span.step)] = span.end_s - span.start_s
        alike.setdefault(_kind_of(span.step, done.plan), []).append(span.end_s - span.start_s)
    typical = {kind: median(each) for kind, each in alike.items()}
    return (
        lambda step: (Phase(Resource.CORE, own.get(id(step), 0.0)),),
        lambda step: (Phase(Resource.CORE, typical.get(_kind_of(step, done.plan), 0.0)),),
    )


def layer_of(position: int, plan: Plan) -> str:
    """Where the figures of a step of `plan` are counted: its layer, or what comes before or after all layers."""
    layer = plan.steps[position].layer
    if layer is not None:
        return str(layer)
    return "embedding" if position < plan.first_in_layers else "output"


def _kind_of(step: Step, plan: Plan) -> object:
    """A reduction after an attention, one after an MLP, and the embedding's are not alike; nor is the last layer."""
    layer = step.layer if step.layer in (None, plan.num_layers - 1) else 0
    return step.op, step.part, layer, (step.norm or 0) % 2


def _layer_order(name: str) -> tuple[int, int]:
    return (1, int(name)) if name.isdigit() else (0 if name == "embedding" else 2, 0)


class _Overlap:
    """The steps of one lane, none of which overlap each other."""

    def __init__(self, spans: list[Span]) -> None:
        self._spans = sorted(spans, key=lambda span: span.start_s)
        self._starts = [span.start_s for span in self._spans]

    def within(self, span: Span) -> float:
        """For how much of `span` the lane was inside a step."""
        first = max(0, bisect_right(self._starts, span.start_s) - 1)
        last = bisect_right(self._starts, span.end_s)
        shared = (
            min(span.end_s, other.end_s) - max(span.start_s, other.start_s)
            for other in self._spans[first:last]
        )
        return sum(each for each in shared if each > 0)
