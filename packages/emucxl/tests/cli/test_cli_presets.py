from __future__ import annotations

import json
from typing import Any

from emucxl.presets import presets


def test_every_preset_is_printed_with_its_figures_and_its_source(invoke: Any) -> None:
    text = " ".join(invoke("presets").stdout.split())
    for name, preset in presets().items():
        assert name in text
        assert f"{preset.timing.read_latency_ns:,.0f}" in text
        assert preset.source.split()[0] in text


def test_json_has_every_preset_whole(invoke: Any) -> None:
    found = json.loads(invoke("presets", "--json").stdout)["presets"]
    assert list(found) == list(presets())
    for name, preset in presets().items():
        assert found[name]["source"] == preset.source
        assert found[name]["timing"]["read_latency_ns"] == preset.timing.read_latency_ns
