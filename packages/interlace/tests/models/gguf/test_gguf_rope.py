"""Rotary scaling of GGUF files against what llama.cpp computed for them (llama-cpp-python 0.3.36, in float32)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interlace.engine.config import EngineConfig
from interlace.engine.ranks.launch import start
from support.driver import logits_of
from support.tiny_models import VOCAB_SIZE, make_gguf

PROMPT = [(i * 37 + 11) % VOCAB_SIZE for i in range(40)]
SCALING = "llama.rope.scaling."
# Metadata; the likeliest token behind each of the last 8, nowhere closer to the next than 0.19; its logit at the end.
CASES: dict[str, tuple[dict[str, Any], list[int], float]] = {
    "none": ({}, [195, 143, 42, 150, 107, 114, 162, 143], 53.40),
    "factor alone": ({f"{SCALING}factor": 4.0}, [308, 328, 325, 32, 102, 187, 179, 264], 51.23),
    "old name of it": ({"llama.rope.scale_linear": 4.0}, [308, 328, 325, 32, 102, 187, 179, 264], 51.23),
    "yarn": (
        {
            f"{SCALING}type": "yarn",
            f"{SCALING}factor": 4.0,
            f"{SCALING}original_context_length": 32,
            f"{SCALING}attn_factor": 1.2,
        },
        [12, 212, 256, 25, 90, 138, 306, 143],
        46.62,
    ),
    "type none": (
        {f"{SCALING}type": "none", f"{SCALING}factor": 4.0, f"{SCALING}attn_factor": 1.3},
        [195, 143, 42, 150, 107, 114, 162, 143],
        53.78,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_llama_cpp(tmp_path: Path, case: str) -> None:
    settings, likeliest, last = CASES[case]
    make_gguf(tmp_path / "model.gguf", "F32", settings=settings)
    group = start(
        EngineConfig(
            str(tmp_path / "model.gguf"), communicator="null", dtype="float32", num_kv_blocks=4, threads=1
        )
    )
    try:
        (logits,) = logits_of(group, [PROMPT])
        assert logits.argmax(1)[-8:].tolist() == likeliest
        assert logits[-1].max().item() == pytest.approx(last, abs=0.02)
    finally:
        group.close()
