"""Which tokens end a text, a turn or a message, by what their files say and by the names that are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from interlace.models.tokenization.known_tokens import ENDS_OF_TEXT, FILL_IN_MIDDLE_ENDS
from interlace.models.tokenization.metadata import special_token_ids

_ROLES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


def ends_among(tokens: Iterable[str]) -> frozenset[str]:
    """Those of `tokens` whose names say that a text, a turn or a message ends."""
    found = ENDS_OF_TEXT.intersection(tokens)
    calls, returns = found & {"<|call|>", "<|calls|>"}, found & {"<|return|>", "<|flush|>"}
    if calls and returns:
        found -= {"<|end|>"}  # in these vocabularies it ends one message of several in a turn
    if "<|tool_response>" in found:
        found -= {"</s>"}  # an HTML tag there
    return found


def gguf_end_ids(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that a GGUF file names as ends, then those of its vocabulary's tokens that are ends by name.

    Many files name one end where the model uses several: `<|im_end|>` beside `<|endoftext|>`. The rule is llama.cpp's.

    Raises:
        ConfigError: an id is not a number.
    """
    named = [token_id for role in _ROLES for token_id in special_token_ids(fields, role)]
    tokens = fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return tuple(dict.fromkeys(named))
    texts = [
        token if isinstance(token, str) else "" for token in tokens
    ]  # a tokenizer refuses what is no text
    known = ends_among(texts) | FILL_IN_MIDDLE_ENDS
    by_name = [token_id for token_id, text in enumerate(texts) if text in known]
    return tuple(dict.fromkeys([*named, *by_name]))
