"""A model's fingerprint: a short name for its configuration and weights, cheap enough to take at every start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from interlace.models.config import ModelConfig

_SAMPLES = 64
_SAMPLE_BYTES = 4096


def model_fingerprint(config: ModelConfig, files: Iterable[Path]) -> str:
    """32 hexadecimal digits that are equal for equal models, wherever they lie on disk.

    Hashes the configuration, and of each file its size and 64 evenly spaced pages, the first and the last among them.
    Two files that differ only between those pages share a fingerprint: it tells models apart, it does not vouch for
    their integrity.
    """
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for path in files:
        size_bytes = path.stat().st_size
        digest.update(size_bytes.to_bytes(8, "little"))
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(max(0, size_bytes - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]
