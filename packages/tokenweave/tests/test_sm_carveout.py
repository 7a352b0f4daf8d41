"""SMs left to others: torch's switch, which a CPU build has too, and a fake of it."""

from __future__ import annotations

import pytest
import torch

from tokenweave.errors import KernelError
from tokenweave.sm_carveout import SmCarveout, torchs_switch


def test_what_held_before_holds_again_also_after_an_error() -> None:
    values: list[int | None] = [4]
    carveout = SmCarveout(16, (lambda: values[-1], values.append))
    assert values[-1] == 4
    with carveout:
        assert values[-1] == 16
        with SmCarveout(8, (lambda: values[-1], values.append)), carveout:
            assert values[-1] == 16
        assert values[-1] == 16
    assert values[-1] == 4
    with pytest.raises(ZeroDivisionError), carveout:
        raise ZeroDivisionError
    assert values[-1] == 4


def test_torchs_own_switch_is_set_without_a_warning() -> None:
    switch = torchs_switch()
    if switch is None:
        pytest.skip("this torch has no SM carve-out")
    read, _ = switch
    with SmCarveout(12) as carveout:
        assert carveout.is_available
        assert read() == 12
    assert read() is None


def test_where_torch_has_no_switch_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_set_sm_carveout_experimental", raising=False)
    with SmCarveout(12) as carveout:
        assert not carveout.is_available


def test_less_than_one_sm_is_refused() -> None:
    with pytest.raises(KernelError, match="got 0 SMs"):
        SmCarveout(0)
