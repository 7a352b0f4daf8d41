"""A picture in SVG for light and for dark pages: shapes of a class, whose colours the style sheet in the file gives."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
text { fill: #1f2937; font: 14px ui-sans-serif, system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
.page { fill: #ffffff; }
.track { fill: #f1f3f7; }
.title { font-size: 17px; font-weight: 650; }
.quiet { fill: #667085; }
.small { font-size: 12px; }
.first { fill: #3f6ae0; }
.second { fill: #f0a132; }
.whole { fill: #7b8799; }
.bold { font-weight: 650; }
.on-first, .on-whole { fill: #ffffff; }
.on-second { fill: #2b1a00; }
.wait { fill: #dc3d43; }
.hatch { stroke: #dc3d43; }
.line { stroke: #d5dae3; stroke-width: 1; }
.curve { fill: none; stroke-width: 3; stroke-linejoin: round; stroke-linecap: round; }
.by-first { stroke: #3f6ae0; }
.by-second { stroke: #f0a132; }
.by-third { stroke: #1f9d78; }
.end { stroke: #1f2937; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6eaf2; }
  .page { fill: #0f141c; }
  .track { fill: #1b2330; }
  .quiet { fill: #9aa6b8; }
  .first { fill: #5b8cff; }
  .second { fill: #f2ae4e; }
  .whole { fill: #66758c; }
  .on-first { fill: #06122b; }
  .on-whole { fill: #ffffff; }
  .on-second { fill: #2b1a00; }
  .wait { fill: #ff7b80; }
  .hatch { stroke: #ff7b80; }
  .line { stroke: #2b3646; }
  .by-first { stroke: #5b8cff; }
  .by-second { stroke: #f2ae4e; }
  .by-third { stroke: #3cc79b; }
  .end { stroke: #e6eaf2; }
}
"""
HATCH = (
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<line class="hatch" x1="0" y1="0" x2="0" y2="6" stroke-width="2.2"/></pattern>'
)


class Picture:
    """Shapes in the order in which they are drawn. Places and sizes are in pixels of a page 1000 wide."""

    def __init__(self, width: float, height: float, description: str) -> None:
        self._lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
            f"<title>{escape(description)}</title>",
            f"<style>{STYLE}</style>",
            f"<defs>{HATCH}</defs>",
        ]
        self.box("page", 0, 0, width, height, radius=14)

    def box(self, look: str, x: float, y: float, width: float, height: float, radius: float = 2) -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self._lines.append(f'<rect class="{look}" {place} rx="{min(radius, width / 2):.1f}"/>')

    def hatched(self, x: float, y: float, width: float, height: float) -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self._lines.append(f'<rect fill="url(#hatch)" {place}/>')

    def line(self, look: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self._lines.append(f'<line class="{look}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def circle(self, look: str, x: float, y: float, radius: float) -> None:
        self._lines.append(f'<circle class="{look}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')

    def curve(self, look: str, points: Sequence[tuple[float, float]]) -> None:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._lines.append(f'<polyline class="curve {look}" points="{places}"/>')

    def text(self, look: str, x: float, y: float, text: str, anchor: str = "start") -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        self._lines.append(f'<text class="{look}" {place}>{escape(text)}</text>')

    def to_svg(self) -> str:
        return "\n".join([*self._lines, "</svg>", ""])
