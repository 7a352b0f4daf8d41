"""Spans: what ran on a device and when, out of a profiler's trace, how they lie beside each other, their picture."""

from __future__ import annotations

import importlib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.findings import Verdict
from benchmarks.gpu.spans import Span, busy_us, covered_us, spans_of
from benchmarks.gpu.streams import beside_products

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def event(
    name: str, begin_us: float, duration_us: float, stream: int, category: str = "kernel"
) -> dict[str, Any]:
    args = {"stream": stream}
    return {"ph": "X", "cat": category, "name": name, "ts": begin_us, "dur": duration_us, "args": args}


TRACE = {
    "traceEvents": [
        {"ph": "M", "name": "process_name", "args": {"name": "python"}},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1.0, "dur": 99.0, "args": {}},
        event("peer_kernel", 1020.0, 20.0, 13),
        event("nvjet_tst_256x128", 1000.0, 30.0, 7),
        event("Memcpy HtoD", 1005.0, 1.0, 7, "gpu_memcpy"),
        event("attend", 1040.5, 10.0, 7),
    ]
}


def spans(*pairs: tuple[float, float]) -> list[Span]:
    return [Span("", begin_us, end_us, 7) for begin_us, end_us in pairs]


def test_spans_are_what_ran_on_the_device_from_the_first_on() -> None:
    assert spans_of(TRACE) == [
        Span("nvjet_tst_256x128", 0.0, 30.0, 7),
        Span("Memcpy HtoD", 5.0, 6.0, 7),
        Span("peer_kernel", 20.0, 40.0, 13),
        Span("attend", 40.5, 50.5, 7),
    ]
    assert spans_of({"traceEvents": []}) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_256x128_64x4", "product"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "product"),
        ("peer_kernel", "reduction"),
        ("one_shot_kernel", "reduction"),
        ("attend", "attention"),
        ("join_partitions", "attention"),
        ("normalise_rows", "other"),
    ],
)
def test_kinds_are_known_by_the_names_of_kernels(name: str, kind: str) -> None:
    assert Span(name, 0.0, 1.0, 7).kind == kind


def test_time_beside_others_counts_once_however_many_there_are() -> None:
    assert covered_us(spans((0, 10)), spans((5, 7), (6, 20))) == 5
    assert covered_us(spans((0, 10), (2, 4)), spans((0, 10), (2, 4))) == 10
    assert covered_us(spans((0, 1)), spans((1, 2))) == 0
    assert covered_us(spans((0, 1)), []) == 0
    assert busy_us(spans((0, 4), (2, 5), (7, 8))) == 6


def test_the_part_of_reductions_beside_products_is_told() -> None:
    assert beside_products("beside", spans_of(TRACE)).got == "50% of 20 us"
    assert beside_products("beside", spans((0, 1))).verdict is Verdict.NOT_RUN


def test_the_picture_has_a_row_for_each_stream_and_a_bar_for_each_span(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "images"))
    draw = importlib.import_module("benchmarks.gpu.picture").draw
    picture = ElementTree.fromstring(draw(spans_of(TRACE), "Kernels <of> a run", "made up"))
    texts = [each.text for each in picture.iter(f"{SVG}text")]
    assert [text for text in texts if text and text.startswith("stream")] == ["stream 7", "stream 13"]
    assert {"Kernels <of> a run", "0 us", "50 us", "product", "reduction"} <= set(texts)
    bars = [each for each in picture.iter(f"{SVG}rect") if each.get("height") == "30.0"]
    tracks = [bar for bar in bars if bar.get("class") == "track"]
    assert (len(tracks), len(bars)) == (2, 2 + 4)
    right = float(tracks[0].get("x", "")) + float(tracks[0].get("width", ""))
    assert max(float(bar.get("x", "")) + float(bar.get("width", "")) for bar in bars) == pytest.approx(
        right, abs=0.2
    )
