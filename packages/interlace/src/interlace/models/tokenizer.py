"""Tokenizer: text to token ids and back, chats to prompts, and tokens to text as they arrive.

Built on `tokenizers` and jinja2 alone: importing transformers would cost more than a cold start may take.
Thread safety: a Tokenizer may be shared by threads; a TokenStream belongs to one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from interlace.errors import TokenizerError
from interlace.models.chat_template import ChatTemplate
from interlace.models.messages import Message
from interlace.models.token_stream import TokenStream
from interlace.models.tokenization.ends import ends_among

_MAX_COMPILED = 16  # chat templates kept compiled: callers may bring their own


class Tokenizer:
    """A model's tokenizer with its special tokens and chat template."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        chat_template: str | Mapping[str, str] | None,
    ) -> None:
        """`chat_template` is the model's one, or its several by name: "default", "tool_use" and others."""
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        named = {"default": chat_template} if isinstance(chat_template, str) else dict(chat_template or {})
        self.chat_templates = named
        self.chat_template = named.get("default", next(iter(named.values()), None))
        self._compiled: dict[str, ChatTemplate] = {}

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
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """The prompt for a chat, as token ids. `variables` reach the template (`tools`, `enable_thinking`).

        `chat_template` is used in the model's place: a Jinja source, or the name of one of the model's several.

        Raises:
            TokenizerError: the model has no chat template, or the template refuses the messages.
        """
        template = self._template(chat_template, variables.get("tools") is not None)
        text = template.render(messages, add_generation_prompt, variables, continue_final_message)
        return self.encode(text, add_special=False)

    def render_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for a chat, as text. Takes and raises what `apply_chat_template` does."""
        template = self._template(chat_template, variables.get("tools") is not None)
        return template.render(messages, add_generation_prompt, variables, continue_final_message)

    def _template(self, override: str | None, has_tools: bool) -> ChatTemplate:
        source = self._template_source(override, has_tools)
        if source not in self._compiled:
            if len(self._compiled) == _MAX_COMPILED:
                self._compiled.clear()
            self._compiled[source] = ChatTemplate(source, self.special_tokens)
        return self._compiled[source]

    def _template_source(self, override: str | None, has_tools: bool) -> str:
        if override is not None:
            if not isinstance(override, str):
                raise TokenizerError(
                    f"got a chat template of type {type(override).__name__}: expected its Jinja source"
                )
            return self.chat_templates.get(override, override)
        if has_tools and "tool_use" in self.chat_templates:
            return self.chat_templates["tool_use"]
        if self.chat_template is None:
            raise TokenizerError(
                "this model has no chat template, so it cannot chat; give it a template (--chat-template) "
                "or a plain prompt (--raw)"
            )
        return self.chat_template
