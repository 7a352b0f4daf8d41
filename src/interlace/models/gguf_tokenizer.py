"""Builds a tokenizer from a GGUF file's metadata.

The file has the vocabulary and merges (or scores), but only the name of the rule that cuts text into words before
merging (`tokenizer.ggml.pre`); the rules are here, as the models' own tokenizer.json have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from interlace.errors import TokenizerError
from interlace.models.tokenizer import Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
_SPACE = "\u2581"  # how SentencePiece writes a space

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
class _Words:
    """How text is cut into words, and what goes with that choice."""

    split: str | None = None  # None: GPT-2's rule, which is ByteLevel's own
    single_digits: bool = False
    whole_words: bool = False  # a word that is in the vocabulary is taken whole, without merging
    compose: bool = False  # normalise to NFC first
    add_bos: bool = False  # when the file does not say


_GPT2_WORDS = _Words()
_SMOLLM_WORDS = _Words(single_digits=True)
_LLAMA3_WORDS = _Words(_LLAMA3, whole_words=True, add_bos=True)
_QWEN2_WORDS = _Words(_QWEN2, compose=True)

_PRE_TOKENIZERS = {
    "default": _GPT2_WORDS,
    "gpt-2": _GPT2_WORDS,
    "smollm": _SMOLLM_WORDS,
    "llama3": _LLAMA3_WORDS,
    "llama-v3": _LLAMA3_WORDS,
    "llama-bpe": _LLAMA3_WORDS,
    "qwen2": _QWEN2_WORDS,
    "deepseek-r1-qwen": _QWEN2_WORDS,
    "tekken": _Words(_TEKKEN, whole_words=True, add_bos=True),
}


def tokenizer_from_gguf(fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describe.

    Raises:
        TokenizerError: no vocabulary in the file, or of a kind that is not supported.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise TokenizerError(
            f"the GGUF tokenizer is of kind {kind!r}; supported are 'gpt2' (byte-level BPE) and 'llama' (SentencePiece)"
        )
    tokens = _required(fields, "tokens")
    try:
        backend = _byte_level(fields, tokens) if kind == "gpt2" else _sentence_piece(fields, tokens)
        special = _special_tokens(fields, tokens)
        _add_added_tokens(backend, fields, tokens)
        _add_post_processor(backend, fields, special)
    except TokenizerError:
        raise
    except Exception as error:  # tokenizers raises bare Exception, for merges outside the vocabulary and more
        raise TokenizerError(f"the GGUF file's vocabulary is damaged: {error}") from error
    template = fields.get("tokenizer.chat_template")
    return Tokenizer(backend, special, template if isinstance(template, str) else None)


def _required(fields: Mapping[str, Any], key: str) -> list[Any]:
    value = fields.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list):
        raise TokenizerError(
            f"the GGUF metadata has no 'tokenizer.ggml.{key}'; the file has no usable tokenizer"
        )
    return value


def _words(fields: Mapping[str, Any]) -> _Words:
    name = fields.get("tokenizer.ggml.pre", "default")
    if not isinstance(name, str) or name not in _PRE_TOKENIZERS:
        raise TokenizerError(
            f"the GGUF pre-tokenizer {name!r} is not known; known are {', '.join(_PRE_TOKENIZERS)}. "
            "Use the model's Hugging Face directory instead, whose tokenizer.json says how it works"
        )
    return _PRE_TOKENIZERS[name]


def _byte_level(fields: Mapping[str, Any], tokens: list[str]) -> Backend:
    words = _words(fields)
    merges = [tuple(merge.split(" ", 1)) for merge in _required(fields, "merges")]
    backend = Backend(BPE(vocab=_ids(tokens), merges=merges, ignore_merges=words.whole_words))
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


def _sentence_piece(fields: Mapping[str, Any], tokens: list[str]) -> Backend:
    """SentencePiece BPE: the best-scored neighbours merge first, characters outside the vocabulary become bytes."""
    ids = _ids(tokens)
    unknown = fields.get("tokenizer.ggml.unknown_token_id")
    backend = Backend(
        BPE(
            vocab=ids,
            merges=_merges_by_score(ids, _required(fields, "scores")),
            unk_token=tokens[unknown] if unknown is not None else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    leading_space = fields.get("tokenizer.ggml.add_space_prefix", True)
    scheme = "first" if leading_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if leading_space:
        steps.append(decoders.Strip(content=" ", left=1))
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


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: token_id for token_id, token in enumerate(tokens)}


def _special_tokens(fields: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {}
    for name, key in names.items():
        token_id = fields.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            if not 0 <= token_id < len(tokens):
                raise TokenizerError(
                    f"the GGUF {key} token id {token_id} is outside the {len(tokens)} tokens"
                )
            special[name] = tokens[token_id]
    return special


def _add_added_tokens(backend: Backend, fields: Mapping[str, Any], tokens: list[str]) -> None:
    """Control tokens are matched whole and left out of decoded text; user-defined ones are matched whole."""
    types = fields.get("tokenizer.ggml.token_type") or []
    sentence_piece = fields.get("tokenizer.ggml.model") == "llama"
    special_types = (_CONTROL, _UNKNOWN) if sentence_piece else (_CONTROL,)
    typed = list(zip(tokens, types, strict=False))
    backend.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, k in typed if k in special_types]
    )
    backend.add_tokens(
        [AddedToken(t, normalized=False, special=False) for t, k in typed if k == _USER_DEFINED]
    )


def _add_post_processor(backend: Backend, fields: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """The tokens the model expects around a text."""
    sentence_piece = fields.get("tokenizer.ggml.model") == "llama"
    default_bos = True if sentence_piece else _words(fields).add_bos
    bos = special.get("bos_token") if fields.get("tokenizer.ggml.add_bos_token", default_bos) else None
    eos = special.get("eos_token") if fields.get("tokenizer.ggml.add_eos_token", False) else None
    around = [token for token in (bos, eos) if token is not None]
    if around:
        backend.post_processor = processors.TemplateProcessing(
            single=[part for part in (bos, "$A", eos) if part is not None],
            special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(around)],
        )
