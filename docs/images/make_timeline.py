"""Draws weaving.svg: the same two layers of a prompt, computed whole and woven, as two ranks really ran them.

python docs/images/make_timeline.py            draws what timeline.json holds
python docs/images/make_timeline.py --record   records it anew on this machine first, and takes about a minute
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

from interlace.cli.svg import Picture

HERE = Path(__file__).parent
LINK = "0.25GB/s,5us"
ROUNDS = 7
NUM_LAYERS = 2  # that are drawn
LABELS = {"attention": "attention", "mlp": "MLP"}
LEFT, RIGHT = 112.0, 930.0
COMPUTE, TRANSFER, GAP = 32.0, 13.0, 3.0  # heights


@dataclass(frozen=True)
class Bar:
    """A step as it ran. Times are in milliseconds from the left edge of the picture."""

    rank: int
    lane: str
    op: str
    part: int | None
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Window:
    """The steps of `NUM_LAYERS` layers of one pass."""

    num_tokens: int
    split: int | None
    first_layer: int
    duration_ms: float
    pass_ms: float
    bars: tuple[Bar, ...]

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Window:
        return cls(**{**found, "bars": tuple(Bar(**each) for each in found["bars"])})


def record() -> dict[str, Any]:
    """Runs a prompt with and without weaving in turns, and keeps of each kind the run that was disturbed least."""
    prompt = "In one word, what is this?\n" + (HERE.parents[1] / "LICENSE").read_text()[:4500]
    traces: dict[str, list[dict[str, Any]]] = {"never": [], "always": []}
    table = ""
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for weave, kept in traces.items():
                path = Path(folder) / f"{weave}.json"
                command = [
                    "interlace",
                    "generate",
                    "--tp",
                    "2",
                    "--threads",
                    "1",
                    "--link",
                    LINK,
                    "--weave",
                    weave,
                ]
                command += ["--temperature", "0", "--max-tokens", "1", "--table", "--trace", str(path), "-"]
                done = subprocess.run(command, input=prompt, capture_output=True, text=True, check=True)
                kept.append(json.loads(path.read_text()))
                table = done.stdout
    model = next(line.split(maxsplit=1)[1] for line in table.splitlines() if line.startswith("model "))
    found = {weave: min((window_of(trace) for trace in kept), key=pass_ms) for weave, kept in traces.items()}
    told = {"machine": processor(), "model": model, "link": LINK}
    return told | {"whole": asdict(found["never"]), "woven": asdict(found["always"])}


def pass_ms(window: Window) -> float:
    return window.pass_ms


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    pairs = (line.partition(":") for line in lines)
    known = {key.strip(): value.strip() for key, _, value in pairs}
    return f"{known['model name']} (family {known['cpu family']}, model {known['model']})"


def window_of(trace: dict[str, Any]) -> Window:
    """The typical layers of a trace's first pass: of all neighbours, those that took the median time."""
    events = [each for each in trace["traceEvents"] if each["ph"] == "X" and each["args"]["pass"] == 0]
    starts_us = {
        each["args"]["layer"]: each["ts"]
        for each in events
        if each["pid"] == 0 and each["args"]["op"] == "attention" and not each["args"]["part"]
    }
    periods_us = {
        layer: starts_us[layer + NUM_LAYERS] - start_us
        for layer, start_us in starts_us.items()
        if layer > 0 and layer + NUM_LAYERS < max(starts_us)
    }
    layer = min(periods_us, key=lambda each: abs(periods_us[each] - median_low(periods_us.values())))
    begin_us, period_us = starts_us[layer], periods_us[layer]
    total_us = max(each["ts"] + each["dur"] for each in events) - min(each["ts"] for each in events)
    bars = sorted(
        bars_between(events, begin_us, begin_us + period_us), key=lambda bar: (bar.rank, bar.start_ms)
    )
    args = events[0]["args"]
    return Window(
        num_tokens=args["of_tokens"],
        split=args["split"],
        first_layer=layer,
        duration_ms=round(period_us / 1e3, 2),
        pass_ms=round(total_us / 1e3, 1),
        bars=tuple(bars),
    )


def bars_between(events: list[dict[str, Any]], begin_us: float, end_us: float) -> Iterator[Bar]:
    for each in events:
        start_us, stop_us = max(each["ts"], begin_us), min(each["ts"] + each["dur"], end_us)
        if stop_us > start_us:
            args = each["args"]
            times = [round((at - begin_us) / 1e3, 2) for at in (start_us, stop_us)]
            yield Bar(each["pid"], each["cat"], args["op"], args["part"], *times)


def draw(found: dict[str, Any]) -> str:
    whole, woven = Window.from_json(found["whole"]), Window.from_json(found["woven"])
    times = f"{whole.duration_ms:.0f} ms not woven, {woven.duration_ms:.0f} ms woven"
    picture = Picture(1000, 454, f"Two layers of a prompt over two ranks: {times}")
    pixels_per_ms = (RIGHT - LEFT) / whole.duration_ms
    says = (
        f"all {whole.num_tokens} tokens at once: twice in each layer, both ranks wait for each other's sums"
    )
    Panel(picture, 16, pixels_per_ms).draw(whole, "Not woven", says)
    assert woven.split is not None
    says = f"{woven.split} tokens compute while the sums of the other {woven.num_tokens - woven.split} travel, in turns"
    Panel(picture, 216, pixels_per_ms).draw(woven, "Woven", says)
    legend(picture, 412)
    name, dtype, _ = found["model"].split(", ")
    recorded = f"Recorded: two layers of {name} in {dtype}, on two cores of an {found['machine']}."
    bandwidth = found["link"].partition(",")[0].replace("GB", " GB")
    picture.text("small quiet", LEFT, 436, f"{recorded} Modelled: the link between the ranks, {bandwidth}.")
    return picture.to_svg()


@dataclass(frozen=True)
class Panel:
    """One window: a title, and for each rank a lane that computes above a lane that transfers."""

    picture: Picture
    top: float
    pixels_per_ms: float

    def draw(self, window: Window, title: str, says: str) -> None:
        """Draws the panel. Its end is marked with how long its layers took."""
        end = LEFT + window.duration_ms * self.pixels_per_ms
        self.picture.text("title", 24, self.top + 20, title)
        self.picture.text("quiet", LEFT + 30, self.top + 20, says)
        ranks = sorted({bar.rank for bar in window.bars})
        tops = {rank: self.top + 38 + rank * (COMPUTE + GAP + TRANSFER + 20) for rank in ranks}
        for rank, top in tops.items():
            self.labels(rank, top)
            self.picture.box("track", LEFT, top, end - LEFT, COMPUTE)
            self.picture.box("track", LEFT, top + COMPUTE + GAP, end - LEFT, TRANSFER)
            bars = [bar for bar in window.bars if bar.rank == rank]
            self.waits([bar for bar in bars if bar.lane == "compute"], top, window.duration_ms)
            for bar in bars:
                self.bar(bar, top, "whole" if window.split is None else ("first", "second")[bar.part or 0])
        bottom = max(tops.values()) + COMPUTE + GAP + TRANSFER
        self.picture.line("end", end, self.top + 32, end, bottom + 6)
        self.picture.text("bold", end + 8, (self.top + 38 + bottom) / 2 + 5, f"{window.duration_ms:.0f} ms")

    def labels(self, rank: int, top: float) -> None:
        self.picture.text("", 24, top + 21, f"rank {rank}")
        self.picture.text("quiet small", LEFT - 8, top + COMPUTE + GAP + 11, "link", "end")

    def x(self, at_ms: float) -> float:
        return LEFT + at_ms * self.pixels_per_ms

    def bar(self, bar: Bar, top: float, look: str) -> None:
        x, width = self.x(bar.start_ms), (bar.end_ms - bar.start_ms) * self.pixels_per_ms
        if bar.lane != "compute":
            self.picture.box(look, x, top + COMPUTE + GAP, width, TRANSFER)
            return
        self.picture.box(look, x + 0.5, top, max(width - 1, 0.5), COMPUTE)
        label = LABELS.get(bar.op, "")
        if width > 6.5 * len(label):
            self.picture.text(f"small on-{look}", x + width / 2, top + 20.5, label, "middle")

    def waits(self, computing: list[Bar], top: float, duration_ms: float) -> None:
        """Every time in which the rank computes nothing."""
        edges = [0.0, *(at for bar in computing for at in (bar.start_ms, bar.end_ms)), duration_ms]
        for begin_ms, end_ms in zip(edges[::2], edges[1::2], strict=True):
            width = (end_ms - begin_ms) * self.pixels_per_ms
            if width > 1:
                self.picture.hatched(self.x(begin_ms), top, width, COMPUTE)


def legend(picture: Picture, y: float) -> None:
    x = LEFT
    for look, says in (("whole", "all tokens"), ("first", "first part"), ("second", "second part")):
        picture.box(look, x, y - 11, 22, 12)
        picture.text("small quiet", x + 29, y, says)
        x += 40 + 7 * len(says) + 12
    picture.hatched(x, y - 11, 22, 12)
    picture.text("small quiet", x + 29, y, "the rank computes nothing")


def main() -> None:
    data = HERE / "timeline.json"
    if sys.argv[1:] == ["--record"]:
        data.write_text(json.dumps(record(), indent=1) + "\n")
    elif sys.argv[1:]:
        sys.exit(f"got {' '.join(sys.argv[1:])}; expected nothing, or --record")
    (HERE / "weaving.svg").write_text(draw(json.loads(data.read_text())))


if __name__ == "__main__":
    main()
