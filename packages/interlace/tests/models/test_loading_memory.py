"""Loading takes the memory of the packed weights, and less than a layer beside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from interlace.models.matrix_reader import MatrixReader
from interlace.models.sources import load_model
from support import loading_memory
from support.patience import PATIENCE_S
from support.tiny_models import make_gguf, make_model

VOCABULARY = 65_536
# Of the allocator, of code that runs for the first time, of pages near those that are read. The embedding is 67 MB
# of floats, 18 MB of blocks: without care it would be in memory twice, and its pages of the file as well.
MARGIN_BYTES = 12e6


@pytest.mark.slow
def test_the_peak_of_loading_is_the_weights_and_a_layer(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not reset a process's peak")
    file, directory = tmp_path / "model.gguf", tmp_path / "model"
    make_gguf(file, "Q8_0", vocab=VOCABULARY)
    make_model(directory, vocab_size=VOCABULARY, hidden_size=256)
    make_model(tmp_path / "small")
    warm_up = f"{tmp_path / 'small'},int4,float32"
    cases = [
        f"{file},none,bfloat16",
        f"{file},stored,float32",
        f"{directory},none,float32",
        f"{directory},int4,float32",
    ]
    command = [sys.executable, loading_memory.__file__, warm_up, *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    for case, load in zip(cases, json.loads(done.stdout), strict=True):
        assert load["rise_bytes"] <= load["weights_bytes"] + load["layer_bytes"] + MARGIN_BYTES, (case, load)
        assert load["rise_bytes"] >= 0.9 * load["weights_bytes"], (case, load)


@pytest.mark.parametrize("quantize", ["none", "stored"])
def test_pages_of_the_file_are_given_back_while_a_matrix_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: str
) -> None:
    file = tmp_path / "model.gguf"
    make_gguf(file, "Q8_0")
    monkeypatch.setattr("interlace.models.matrix_reader._LEAST_RELEASED_BYTES", 1)
    source, released = load_model(str(file)).weights, []
    monkeypatch.setattr(source, "release_pages", lambda: released.append(True))
    reader = MatrixReader(source, quantize)
    layer_values = 256 * 256 * 2 + 64 * 256 * 2 + 3 * 512 * 256
    stack = reader.stack({"embed": range(331)})
    matrix = reader.dense("embed") if stack is None else stack[0]
    piece_bytes, layer_values = 331 * 256 * (4 if stack is None else 34 / 32), 256 * 640 + 3 * 512 * 256
    for _ in range(12):
        matrix.rows(range(331))
    pieces_of_a_release = -(-layer_values // 2 // piece_bytes)
    assert len(released) == 12 // pieces_of_a_release >= 3
