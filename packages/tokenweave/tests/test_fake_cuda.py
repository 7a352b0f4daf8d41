"""CudaKernels without a GPU: the contract of kernels and their own promises, under Triton's interpreter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from support.fake_cuda import num_passed
from tokenweave.errors import KernelError
from tokenweave.kernels import make_kernels
from tokenweave.kernels.cuda import available

HERE = Path(__file__).parent
CONTRACT, *PROPERTIES = (
    HERE / name
    for name in (
        "test_kernels.py",
        "interpreted/kernel_properties.py",
        "interpreted/attention_properties.py",
        "interpreted/mixture_properties.py",
        "interpreted/block_properties.py",
        "interpreted/fp8_properties.py",
        "interpreted/half_properties.py",
    )
)


@pytest.mark.timeout(1200)
def test_fake_cuda_keeps_the_contract_of_kernels_and_its_own_promises() -> None:
    """In one run, because it takes seconds to start."""
    assert num_passed("-m", "not slow", CONTRACT, *PROPERTIES) > 120


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fake_cuda_keeps_what_takes_longer_to_show() -> None:
    assert num_passed("-m", "slow", CONTRACT, *PROPERTIES) > 0


def test_on_the_cpu_they_need_the_interpreter() -> None:
    with pytest.raises(KernelError, match="set TRITON_INTERPRET=1 before triton is imported"):
        make_kernels("cuda", device="cpu")


def test_without_a_device_or_triton_they_say_why_they_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(KernelError, match=r'kernels "cuda" cannot be had here: there is no CUDA device'):
        make_kernels("cuda")
    monkeypatch.setattr("tokenweave.kernels.find_spec", lambda name: None)
    with pytest.raises(KernelError, match="triton is not installed: pip install triton"):
        make_kernels("cuda")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"tokenweave.kernels.cuda.available.find_spec": lambda name: None}, "triton is not installed"),
        ({"torch.version.hip": "6.2"}, "built for ROCm"),
        ({"torch.cuda.get_device_capability": lambda: (7, 5)}, r"capability \(7, 5\), expected \(8, 0\)"),
        (
            {"triton.__version__": "3.4.0"},
            "triton is 3.4.0, expected 3.5 or newer: 3.4 compiles some loops wrongly",
        ),
        ({"triton.__version__": "3.5.0"}, None),
    ],
)
def test_each_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], reason: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    for name, value in changed.items():
        monkeypatch.setattr(name, value)
    found = available.unavailable_reason()
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(reason, found)
