"""SentencePiece vocabularies out of GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers
from tokenizers.models import BPE

from interlace.models.tokenization.metadata import ids_of, required, special_token_ids

_SPACE = "\u2581"  # how SentencePiece writes a space


def sentence_piece(fields: Mapping[str, Any], tokens: list[str]) -> Backend:
    """SentencePiece BPE: the best-scored neighbours merge first, characters outside the vocabulary become bytes.

    A space goes before the text, and before what follows a token that was spelled out in it: normalisation is of
    each stretch between such tokens by itself. It goes there whatever the text begins with, so that `" Hello"` and
    `"Hello"` differ.
    """
    ids = ids_of(tokens)
    unknown = next((tokens[token_id] for token_id in special_token_ids(fields, "unknown")), None)
    backend = Backend(
        BPE(
            vocab=ids,
            merges=_merges_by_score(ids, required(fields, "scores")),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    rules: list[Any] = [normalizers.Replace(" ", _SPACE)]
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        rules.insert(0, normalizers.Prepend(_SPACE))
        steps.append(decoders.Strip(content=" ", left=1))
    backend.normalizer = normalizers.Sequence(rules)
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_by_score(ids: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, best score of the third first; earlier parts first among equals."""
    found = []
    for token, token_id in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                found.append((-scores[token_id], -len(left), -len(right), ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
