"""Loading takes the memory of the packed weights and of a layer; all ranks together take that of the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interlace.errors import ModelNotFound
from interlace.models.decoder import Decoder
from interlace.models.matrix_reader import MatrixReader
from interlace.models.shard import Shard
from interlace.models.sources import LoadedModel, load_model
from support import loading_memory
from support.patience import PATIENCE_S
from support.stored_cases import ALL_FORMATS
from support.tiny_models import make_gguf, make_model
from tokenweave.communicators import NullCommunicator
from tokenweave.kernels import make_kernels

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


def stored_bytes(model: LoadedModel, tp: int) -> int:
    """The weights of all ranks together, held as the file's own blocks."""
    kernels = make_kernels("native")
    shards = Shard.all_of(model.config, tp)
    decoders = (
        Decoder(model.weights, shard, kernels, NullCommunicator(), torch.float32, 64, "stored")
        for shard in shards
    )
    return sum(decoder.size_bytes for decoder in decoders)


def file_bytes(model: LoadedModel) -> int:
    return sum(file.stat().st_size for file in model.weights.files)


@pytest.mark.parametrize("kind", [form.name.upper() for form in ALL_FORMATS])
def test_all_ranks_together_hold_hardly_more_than_the_file(tmp_path: Path, kind: str) -> None:
    """Eight heads over three ranks are 2, 3 and 3, and both KV heads are on two of the ranks."""
    make_gguf(tmp_path / "model.gguf", kind, vocab=2000)
    model = load_model(str(tmp_path / "model.gguf"))
    for tp in (1, 2, 3, 4):
        assert 0.9 * file_bytes(model) < stored_bytes(model, tp) <= 1.1 * file_bytes(model), tp


@pytest.mark.slow
def test_all_ranks_of_smollm2_hold_hardly_more_than_its_file() -> None:
    """Nine heads in three groups: over two and four ranks some KV heads are on two of them."""
    try:
        model = load_model("smollm2", quiet=True)
    except ModelNotFound as error:
        pytest.skip(f"smollm2 cannot be fetched here: {error}")
    for tp in (1, 2, 3, 4):
        assert 0.95 * file_bytes(model) < stored_bytes(model, tp) <= 1.02 * file_bytes(model), tp
