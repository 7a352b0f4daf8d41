"""The names that users import, pinned: a change here is a change for them."""

from __future__ import annotations

import subprocess
import sys

import interlace

NAMES = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "EngineConfig",
    "EngineStats",
    "Logprob",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StreamChunk",
    "TierStats",
]


def test_exported_names_are_these() -> None:
    assert sorted(interlace.__all__) == sorted(NAMES)


def test_every_exported_name_resolves() -> None:
    for name in NAMES:
        assert getattr(interlace, name).__name__ == name
        assert name in dir(interlace)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(interlace, "Nonesuch")


def test_import_interlace_and_its_parameters_load_no_torch() -> None:
    code = "import interlace, sys; interlace.SamplingParams(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
