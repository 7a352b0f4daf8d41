from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interlace.models import sources


def test_pull_says_where_the_model_is_and_how_large(invoke: Any, tiny_model: Path) -> None:
    result = invoke("pull", str(tiny_model))
    assert result.exit_code == 0
    facts = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert facts["path"] == str(tiny_model)
    assert facts["size"].endswith("MB")
    assert "licence" in facts


def test_the_licence_of_the_embedded_model_is_named(
    invoke: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(100))
    monkeypatch.setattr(sources, "pull", lambda name, quiet: file)
    assert "Apache-2.0" in invoke("pull", "smollm2").stdout


def test_an_unknown_name_is_one_line(invoke: Any) -> None:
    result = invoke("pull", "nonsense")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no model 'nonsense'")
