"""Byte-level BPE out of GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from interlace.models.tokenization.metadata import ids_of, required
from interlace.models.tokenization.pre_tokenizers import words_of


def byte_level(fields: Mapping[str, Any], tokens: list[str]) -> Backend:
    words = words_of(fields)
    merges = [tuple(merge.split(" ", 1)) for merge in required(fields, "merges")]
    backend = Backend(BPE(vocab=ids_of(tokens), merges=merges, ignore_merges=words.whole_words))
    if words.compose:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = []
    if words.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if words.split:
        steps.append(pre_tokenizers.Split(Regex(words.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words.split is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend
