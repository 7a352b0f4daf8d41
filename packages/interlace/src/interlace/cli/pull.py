"""`interlace pull`: fetch a model before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interlace.cli import console
from interlace.models.gguf.names import names_of_parts

LICENSE_OF_ALIAS = {"smollm2": "Apache-2.0 (SmolLM2-135M-Instruct, Hugging Face)"}
LICENSE_ELSEWHERE = "see the model's own page; a licence may limit what it is used for"


def pull(
    name: Annotated[
        str,
        typer.Argument(help="An alias (smollm2) or a model on the hub (organisation/model[:QUANTISATION])."),
    ],
) -> None:
    """Fetch a model, and print where it is."""
    from interlace.models.sources import pull as fetch

    path = fetch(name, quiet=not console.is_progress_shown())
    print(f"model    {name}")
    print(f"path     {path}")
    print(f"size     {console.megabytes(_size_bytes(path))}")
    print(f"licence  {LICENSE_OF_ALIAS.get(name, LICENSE_ELSEWHERE)}")


def _size_bytes(path: Path) -> int:
    parts = (path.with_name(name) for name in names_of_parts(path.name))
    files = path.rglob("*") if path.is_dir() else parts
    return sum(file.stat().st_size for file in files if file.is_file())
