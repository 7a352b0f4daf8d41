"""Byte-level BPE out of GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from interlace.models.tokenization.metadata import ids_of, required
from interlace.models.tokenization.pre_tokenizers import Words


def byte_level(fields: Mapping[str, Any], tokens: list[str], words: Words) -> Backend:
    """Byte-level BPE: text is cut into `words`, whose bytes are merged in the file's order."""
    pairs = [tuple(merge.split(" ", 1)) for merge in required(fields, "merges")]
    merges = list(dict.fromkeys(pairs))  # of a pair that is there twice the first place holds
    backend = Backend(BPE(vocab=ids_of(tokens), merges=merges, ignore_merges=words.whole_words))
    if words.compose:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in words.splits]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend
