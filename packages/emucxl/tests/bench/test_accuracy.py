"""The points that the accuracy benchmark measures."""

from __future__ import annotations

import pytest

from emucxl.bench import accuracy
from emucxl.calibration import Calibration
from emucxl.timing import Timing


@pytest.mark.parametrize(("calibrated_gbps", "most_gbps"), [(1.9, 2.0), (20.0, 10.0)])
def test_only_bandwidths_that_the_calibration_allows_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, calibrated_gbps: float, most_gbps: float
) -> None:
    here = Calibration(200, 200, calibrated_gbps, calibrated_gbps, 20, 50_000, 60, num_cores=2)
    monkeypatch.setattr(accuracy, "read_bandwidth", lambda *arguments: 15.0)
    asked_gbps = [measure.target for measure in accuracy.bandwidths(here, quick=True).values()]
    assert max(asked_gbps) == most_gbps
    here.check(Timing(1000, 1000, most_gbps, most_gbps))
