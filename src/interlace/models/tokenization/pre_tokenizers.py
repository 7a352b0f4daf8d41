"""How byte-level vocabularies cut text into words before merging, by the names that GGUF files have for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interlace.errors import TokenizerError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Words:
    """How text is cut into words, and what goes with that choice."""

    split: str | None = None  # None: GPT-2's rule, which is ByteLevel's own
    single_digits: bool = False
    whole_words: bool = False  # a word that is in the vocabulary is taken whole, without merging
    compose: bool = False  # normalise to NFC first
    add_bos: bool = False  # when the file does not say


_GPT2_WORDS = Words()
_SMOLLM_WORDS = Words(single_digits=True)
_LLAMA3_WORDS = Words(_LLAMA3, whole_words=True, add_bos=True)
_QWEN2_WORDS = Words(_QWEN2, compose=True)

PRE_TOKENIZERS = {
    "default": _GPT2_WORDS,
    "gpt-2": _GPT2_WORDS,
    "smollm": _SMOLLM_WORDS,
    "llama3": _LLAMA3_WORDS,
    "llama-v3": _LLAMA3_WORDS,
    "llama-bpe": _LLAMA3_WORDS,
    "qwen2": _QWEN2_WORDS,
    "deepseek-r1-qwen": _QWEN2_WORDS,
    "tekken": Words(_TEKKEN, whole_words=True, add_bos=True),
}


def words_of(fields: Mapping[str, Any]) -> Words:
    name = fields.get("tokenizer.ggml.pre", "default")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"the GGUF pre-tokenizer {name!r} is not known; known are {', '.join(PRE_TOKENIZERS)}. "
            "Use the model's Hugging Face directory instead, whose tokenizer.json says how it works"
        )
    return PRE_TOKENIZERS[name]
