"""Tokenizer: text to token ids and back, chats to prompts, and tokens to text as they arrive.

Built on `tokenizers` and jinja2 alone: importing transformers would cost more than a cold start may take.
Thread safety: a Tokenizer may be shared by threads; a TokenStream belongs to one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from interlace.errors import TokenizerError
from interlace.models.chat_template import ChatTemplate, Message
from interlace.models.token_stream import TokenStream
from interlace.models.tokenization.ends import ends_among


class Tokenizer:
    """A model's tokenizer with its special tokens and chat template."""

    def __init__(
        self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str], chat_template: str | None
    ) -> None:
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template

    @property
    def vocab_size(self) -> int:
        """Tokens the tokenizer knows; a model's embedding may have more rows."""
        size: int = self.backend.get_vocab_size(with_added_tokens=True)
        return size

    @property
    def eos_token_id(self) -> int | None:
        return self._id_of("eos_token")

    @property
    def bos_token_id(self) -> int | None:
        return self._id_of("bos_token")

    @cached_property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text or a turn: EOS, and those known by name that the chat template writes."""
        template = self.chat_template or ""
        written = (self._special_ids[token] for token in ends_among(self._special_ids) if token in template)
        own = () if self.eos_token_id is None else (self.eos_token_id,)
        return tuple(dict.fromkeys((*own, *sorted(written))))

    def special_token_id(self, text: str) -> int | None:
        """The id of the special token that `text` is, from its first character to its last."""
        return self._special_ids.get(text)

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        found: int | None = None if token is None else self.backend.token_to_id(token)
        return found

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of `text`. `add_special` adds what the model expects around a text, such as a leading BOS.

        Special tokens spelled out in `text` become those tokens, as transformers has it.

        Raises:
            TokenizerError: `text` is not a string, or holds lone surrogates.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"cannot encode {type(text).__name__}, expected a string")
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise TokenizerError(
                f"cannot encode the text ({error}): it holds lone surrogates; "
                "decode its bytes with errors='replace'"
            ) from error
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`. Ids outside the vocabulary give nothing; bytes that are no character give U+FFFD."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def is_spelled(self, token_id: int, skip_special: bool = True) -> bool:
        """Whether `decode` looks at the token: it leaves out special ones, and ids outside the vocabulary."""
        if token_id in self._hidden:
            return not skip_special
        return self.backend.id_to_token(token_id) is not None

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        added = self.backend.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items() if token.special}

    @cached_property
    def _hidden(self) -> frozenset[int]:
        return frozenset(self._special_ids.values())

    def stream(self, skip_special: bool = True, prompt: Sequence[int] = ()) -> TokenStream:
        """A decoder to push tokens into one by one. The first is spelled as after `prompt`, whose text is not shown."""
        return TokenStream(self, skip_special, prompt)

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The prompt for a chat, as token ids. `variables` reach the template (such as `enable_thinking`).

        Raises:
            TokenizerError: the model has no chat template, or the template refuses the messages.
        """
        text = self.render_chat(messages, add_generation_prompt, **variables)
        return self.encode(text, add_special=False)

    def render_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt for a chat, as text. Raises TokenizerError as `apply_chat_template`."""
        return self._compiled_template.render(messages, add_generation_prompt, variables)

    @cached_property
    def _compiled_template(self) -> ChatTemplate:
        if self.chat_template is None:
            raise TokenizerError(
                "this model has no chat template, so it cannot chat; give it a plain prompt instead (--raw)"
            )
        return ChatTemplate(self.chat_template, self.special_tokens)


def tokenizer_from_directory(directory: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory, as `interlace.models.tokenization` reads it.

    Raises:
        TokenizerError: tokenizer.json is missing or damaged, or a file beside it is.
    """
    from interlace.models.tokenization.directory import read_tokenizer

    return read_tokenizer(directory)
