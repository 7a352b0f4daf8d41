"""A small SentencePiece vocabulary as GGUF metadata have it, with ids that sentencepiece itself gave for some texts.

It was trained on a few lines with byte fallback, all whitespace kept, and identity normalisation, as Llama's was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

UNKNOWN, BOS, EOS = 0, 1, 2
_FIRST_PIECE = 3 + 256  # after the special tokens and the bytes
_DATA = json.loads(Path(__file__).with_name("sentence_piece_cases.json").read_text(encoding="utf-8"))

CASES: list[tuple[str, list[int]]] = [(text, ids) for text, ids in _DATA["cases"]]  # without BOS


def fields(added: tuple[str, ...] = (), kind: int = 3, **changes: Any) -> dict[str, Any]:
    """GGUF metadata; `added` tokens of type `kind` (3 control, 4 user-defined) come last. A change to None drops."""
    pieces = _DATA["pieces"]
    values = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *added],
        "scores": [0.0] * _FIRST_PIECE + [-float(rank) for rank in range(len(pieces))] + [0.0] * len(added),
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces) + [kind] * len(added),
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "unknown_token_id": UNKNOWN,
        **changes,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in values.items() if value is not None}
