"""A byte-level vocabulary that shows where texts were cut: wherever two of its tokens touch, a merge joins them.

Made from the texts alone, the same every time, so that what another program made of it can be kept as digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import pre_tokenizers

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<think>"]
CONTROL, USER_DEFINED, NORMAL = 3, 4, 1
_LEVELS = 3  # tokens of up to eight bytes


def dense_fields(texts: Iterable[str], pre: str | None) -> dict[str, Any]:
    """GGUF metadata of the vocabulary. `<|eot_id|>` is typed as ordinary text, as it is in some files."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(texts)
    tokens = [*SPECIAL, *letters, *dict.fromkeys(left + right for left, right in merges)]
    types = [CONTROL] * 4 + [NORMAL, USER_DEFINED] + [NORMAL] * (len(tokens) - 6)
    return {
        "tokenizer.ggml.model": "gpt2",
        **({} if pre is None else {"tokenizer.ggml.pre": pre}),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def digest(ids: Sequence[int]) -> str:
    """Four hexadecimal digits of the token ids of a text."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:4]


def _merges(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Level by level, every pair of neighbours in the texts, in an order without meaning; then the texts so merged."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rows = [list("".join(piece for piece, _ in to_bytes.pre_tokenize_str(text))) for text in texts]
    merges: dict[tuple[str, str], int] = {}
    made = set(SPECIAL)
    for _ in range(_LEVELS):
        pairs = {pair for row in rows for pair in pairwise(row)}
        new = sorted(pairs, key=lambda pair: hashlib.sha256("\0".join(pair).encode()).digest())
        for pair in new:
            if pair not in merges and "".join(pair) not in made:
                merges[pair] = len(merges)
                made.add("".join(pair))
        rows = [_merged(row, merges) for row in rows]
    return list(merges)


def _merged(row: list[str], merges: dict[tuple[str, str], int]) -> list[str]:
    while True:
        ranks = [merges.get(pair, len(merges)) for pair in pairwise(row)]
        best = min(ranks, default=len(merges))
        if best == len(merges):
            return row
        at = ranks.index(best)
        row = [*row[:at], row[at] + row[at + 1], *row[at + 2 :]]
