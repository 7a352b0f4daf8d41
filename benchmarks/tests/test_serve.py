"""The whole benchmark, small, over the real model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from interlace.errors import ModelError
from interlace.models.sources import resolve


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interlace_alone_is_measured_end_to_end(tmp_path: Path) -> None:
    try:
        resolve("smollm2", quiet=True)
    except ModelError as error:
        pytest.skip(f"smollm2 cannot be fetched here: {error}")
    systems = "interlace-f32,interlace-f32-tp2"
    options = ["--quick", "--rounds", "1", "--systems", systems, "--json", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "serve", *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [system["name"] for system in result["systems"]] == systems.split(",")
    assert all(system["agreement"]["num_identical"] == 4 for system in result["systems"])
    assert all(rates[0] > 0 for system in result["systems"] for rates in system["samples"].values())
    assert {entry["ranks"] for entry in result["cold_start"]} == {1, 2}
    assert json.loads(next(tmp_path.glob("*/serve-quick.json")).read_text()) == result
