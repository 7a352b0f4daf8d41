"""Builds a tokenizer from a GGUF file's metadata.

The file has the vocabulary and merges (or scores), but only the name of the rule that cuts text into words before
merging (`tokenizer.ggml.pre`); `pre_tokenizers` has the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from interlace.errors import TokenizerError
from interlace.models.tokenization import known_tokens
from interlace.models.tokenization.byte_level import byte_level
from interlace.models.tokenization.metadata import check_keys, flag, special_token_ids, tokens_of, types_of
from interlace.models.tokenization.pre_tokenizers import words_of
from interlace.models.tokenization.sentence_piece import sentence_piece
from interlace.models.tokenizer import Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type


def tokenizer_from_gguf(fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describe.

    Raises:
        TokenizerError: no vocabulary in the file, or of a kind that is not supported, or it asks for more than is.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise TokenizerError(
            f"the GGUF tokenizer is of kind {kind!r}; supported are 'gpt2' (byte-level BPE) and 'llama' (SentencePiece)"
        )
    check_keys(fields)
    try:
        tokens = tokens_of(fields)
        types = types_of(fields, tokens)
        if kind == "gpt2":
            words = words_of(fields)
            backend, add_bos = byte_level(fields, tokens, words), words.add_bos
        else:
            backend, add_bos = sentence_piece(fields, tokens), True
        special = _special_tokens(fields, tokens)
        _add_added_tokens(backend, tokens, types)
        _add_post_processor(backend, fields, special, add_bos)
    except TokenizerError:
        raise
    except Exception as error:  # tokenizers raises bare Exception, for merges outside the vocabulary and more
        raise TokenizerError(f"the GGUF file's vocabulary is damaged: {error}") from error
    return Tokenizer(backend, special, _chat_templates(fields))


def _chat_templates(fields: Mapping[str, Any]) -> dict[str, str]:
    """By name: the plain key is the default, the others end in theirs ("tokenizer.chat_template.tool_use")."""
    key = "tokenizer.chat_template"
    named = {"default": fields.get(key)}
    named |= {
        name.removeprefix(f"{key}."): value for name, value in fields.items() if name.startswith(f"{key}.")
    }
    return {name: text for name, text in named.items() if isinstance(text, str)}


def _special_tokens(fields: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {}
    for name, key in names.items():
        for token_id in special_token_ids(fields, key)[:1]:
            if not 0 <= token_id < len(tokens):
                raise TokenizerError(
                    f"the GGUF {key} token id {token_id} is outside the {len(tokens)} tokens"
                )
            special[name] = tokens[token_id]
    return special


def _add_added_tokens(backend: Backend, tokens: list[str], types: list[int]) -> None:
    """Control tokens are matched whole and left out of decoded text; user-defined ones are matched whole.

    Some files have control tokens typed as ordinary text, `<|eot_id|>` for one: those that are known by name are
    control tokens whatever their type, as in llama.cpp.
    """
    control, user_defined = [], []
    for token, kind in zip(tokens, types, strict=False):
        if kind in (_CONTROL, _UNKNOWN) or token in known_tokens.CONTROL:
            control.append(AddedToken(token, normalized=False, special=True))
        elif kind == _USER_DEFINED:
            user_defined.append(AddedToken(token, normalized=False, special=False))
    backend.add_special_tokens(control)
    backend.add_tokens(user_defined)


def _add_post_processor(
    backend: Backend, fields: Mapping[str, Any], special: Mapping[str, str], add_bos: bool
) -> None:
    """The tokens the model expects around a text; `add_bos` holds when the file does not say."""
    bos = special.get("bos_token") if flag(fields, "add_bos_token", add_bos) else None
    eos = special.get("eos_token") if flag(fields, "add_eos_token", False) else None
    around = [token for token in (bos, eos) if token is not None]
    if around:
        backend.post_processor = processors.TemplateProcessing(
            single=[part for part in (bos, "$A", eos) if part is not None],
            special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(around)],
        )
