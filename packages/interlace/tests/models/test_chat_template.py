"""Chat templates in the styles that models are published with, against transformers; and text in parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

from interlace.errors import TokenizerError
from interlace.models.gguf.tokenizer import _chat_templates
from interlace.models.tokenization.directory import tokenizer_from_directory
from interlace.models.tokenizer import Tokenizer
from support.tiny_models import write_tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
LOOP = "{{ bos_token }}{% for m in messages %}"
END = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
TEMPLATES = {
    "strings": LOOP + "{{ '<' + m['role'] + '>' + m['content'] + eos_token }}\n" + END,
    "printed": LOOP + "<{{ m.role }}>{{ m.content }}|{{ m.tool_calls }}" + END,
    "trimmed": LOOP + "<{{ m.role }}>{{ m.content | trim }}</s>" + END,
    "parts": LOOP
    + "<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    + "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    + END,
    "parts_but_for_the_system": LOOP
    + "{% if m.role == 'system' %}[{{ m.content | trim }}]{% elif m.content is string %}{{ m.content }}"
    + "{% else %}{{ m.content | map(attribute='text') | join('+') }}{% endif %}"
    + END,
    "silent_about_parts": LOOP + "{% if m.content is string %}{{ m.content }}{% endif %}" + END,
    "tools": "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}"
    + LOOP
    + "<{{ m.role }}>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    + '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{% endfor %}'
    + END,
    "strict_calls": LOOP
    + "{{ m.content }}{% for c in m.tool_calls or [] %}{% for k, v in c.function.arguments | items %}"
    + "{{ k }}={{ v }};{% endfor %}{% endfor %}"
    + END,
    "tool_gives_json": LOOP
    + "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}"
    + END,
    "none_tested": LOOP
    + "{% if m.content is none %}null{% elif 'content' in m %}{{ m.content }}{% else %}-{% endif %}"
    + END,
    "thinking": LOOP
    + "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    + END
    + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}",
    "documents": "{% for d in documents or [] %}[{{ d.title }}: {{ d.text }}]{% endfor %}"
    + "{{ strftime_now('%Y') }}"
    + LOOP
    + "{% if loop.index > 3 %}{% break %}{% endif %}{{ m.content }}"
    + END,
    "refusing": "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    + LOOP
    + "{{ m.content }}"
    + END,
    "generation": "{% set ns = namespace(n=0) %}{% set last = 'none' %}"
    + LOOP
    + "{% generation %}{% set last = m.role %}{% set ns.n = ns.n + 1 %}{{ m.content }}{{ last }}{% endgeneration %}"
    + "{{ last }}{{ ns.n }}"
    + END,
}


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


RESULT = {"role": "tool", "content": "20C", "tool_call_id": "c1"}
SYSTEM = {"role": "system", "content": " Be brief. "}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [user("Hi")],
    "system": [SYSTEM, user("Hi"), assistant("Hello "), user(' "B" <b>&é\n')],
    "no_content": [{"role": "user"}],
    "none": [user(None), assistant(None, tool_calls=None, refusal=None)],
    "calls": [user("x"), assistant(None, tool_calls=[call({"city": "Paris", "n": [1, None]})]), RESULT],
    "text_and_calls": [user("x"), assistant("Well", tool_calls=[call({})]), RESULT, assistant("20")],
    "reasoning": [user("x"), assistant("y", reasoning_content="because"), user("z")],
    "thinking": [user("x"), assistant("y", thinking="because"), user("z")],
    "four": [user("1"), assistant("2"), user("3"), assistant("4 ")],
    "braces": [user("{{ 7 * 7 }}{% raw %}")],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"é": "<b>"}}}]
GIVEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no_prompt": {"add_generation_prompt": False},
    "tools": {"tools": TOOLS},
    "thinking_off": {"enable_thinking": False},
    "documents": {"documents": [{"title": "t", "text": "x"}]},
    "continued": {"add_generation_prompt": False, "continue_final_message": True},
}


def tokenizer(template: str) -> Tokenizer:
    return Tokenizer(Backend(WordLevel({"x": 0}, unk_token="x")), SPECIAL, template)


@cache
def oracle() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Backend(WordLevel({"x": 0}, unk_token="x")), **SPECIAL)


def by_transformers(template: str, chat: list[dict[str, Any]], given: dict[str, Any]) -> str:
    arguments = {"add_generation_prompt": True, **given}
    text: str = oracle().apply_chat_template(chat, chat_template=template, tokenize=False, **arguments)
    return text


def outcome(render: Callable[[], str]) -> str:
    """Returns the rendered text, or says that the template was refused."""
    try:
        return render()
    except Exception:
        return "(refused)"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_conversation_equals_transformers(name: str) -> None:
    template = TEMPLATES[name]
    ours = tokenizer(template)
    for chat in CHATS.values():
        for given in GIVEN.values():
            expected = outcome(lambda chat=chat, given=given: by_transformers(template, chat, given))
            assert outcome(lambda chat=chat, given=given: ours.render_chat(chat, **given)) == expected


# --- text in parts


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_part_is_what_its_text_is_as_a_string(name: str) -> None:
    """transformers shows Python's spelling of the list where the template takes strings only, or fails."""
    ours = tokenizer(TEMPLATES[name])
    as_text = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello"), user("Bye")]
    as_parts = [{**message, "content": parts(message["content"])} for message in as_text]
    for given in GIVEN.values():
        assert outcome(lambda given=given: ours.render_chat(as_parts, **given)) == outcome(
            lambda given=given: ours.render_chat(as_text, **given)
        )


def test_a_template_that_takes_parts_gets_them_and_another_gets_lines() -> None:
    chat = [{"role": "system", "content": parts("a", "b")}, user(parts("c", "d"))]
    found = {
        name: tokenizer(TEMPLATES[name]).render_chat(chat, False) for name in TEMPLATES if "part" in name
    }
    assert found == {
        "parts": "<s><system>ab<user>cd",
        "parts_but_for_the_system": "<s>[a\nb]c+d",
        "silent_about_parts": "<s>a\nbc\nd",
    }


def test_strings_among_parts_are_text() -> None:
    assert (
        tokenizer(TEMPLATES["strings"]).render_chat([user(["a", *parts("b")])], False)
        == "<s><user>a\nb</s>\n"
    )


@pytest.mark.parametrize("template", [*TEMPLATES.values(), LOOP + "{{ m['content'] }}" + END])
def test_no_parts_say_nothing(template: str) -> None:
    ours = tokenizer(template)
    assert ours.render_chat([user([])]) == ours.render_chat([user("")])


def test_a_tool_s_object_is_json_where_the_template_does_not_make_it_so() -> None:
    chat = [user("x"), {"role": "tool", "content": {"temperature": 20, "in": "°C"}}]
    expected = '<s>x{"temperature": 20, "in": "°C"}'
    assert tokenizer(TEMPLATES["tool_gives_json"]).render_chat(chat, False) == expected
    for name in ("strings", "printed", "trimmed", "thinking"):
        assert '{"temperature": 20, "in": "°C"}' in tokenizer(TEMPLATES[name]).render_chat(chat, False)


@pytest.mark.parametrize("name", ["tools", "strict_calls"])
def test_arguments_of_calls_may_be_a_string_of_json(name: str) -> None:
    ours, arguments = tokenizer(TEMPLATES[name]), {"city": "Paris", "n": 3}
    as_object = [user("x"), assistant("", tool_calls=[call(arguments)]), RESULT]
    as_string = [user("x"), assistant("", tool_calls=[call(json.dumps(arguments))]), RESULT]
    assert ours.render_chat(as_string) == ours.render_chat(as_object)


# --- what is refused


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (user(5), "message 0: got content 5; expected a string, a list of text parts, or null"),
        (user([5]), "message 0: got a part 5"),
        (
            user([{"type": "image_url", "image_url": {"url": "x"}}]),
            "part of type 'image_url'; this model reads text",
        ),
        (user([{"type": "text"}]), "text part without text"),
        (user([{"type": "widget", "x": 1}]), "type 'widget', and this model's template takes text alone"),
        (user(object()), "message 0 holds a object; expected text, numbers"),
        (user("x", extra=np.zeros(3)), "message 0 holds a ndarray"),
        ({"role": 3, "content": "x"}, "each message is a mapping"),
        ("hello", "each message is a mapping"),
        (None, "each message is a mapping"),
    ],
)
def test_what_is_no_text_is_refused_by_name(message: Any, problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem):
        tokenizer(TEMPLATES["strings"]).render_chat([message])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"tools": "weather"}, "got tools of type str: expected a list of mappings"),
        ({"tools": [print]}, "got tools of type list: expected a list of mappings"),
        ({"documents": {"title": "t"}}, "got documents of type dict"),
        ({"messages": []}, "multiple values|that name is not free"),
        ({"custom": object()}, "template variable 'custom' holds a object"),
        ({"continue_final_message": True}, "exclude each other"),
        ({"chat_template": "{% if %}"}, "the chat template is not valid Jinja"),
        ({"chat_template": "{% break %}"}, "not valid Jinja: 'break' outside loop"),
        ({"chat_template": "{{ " + "9" * 5000 + " }}"}, "not valid Jinja: Exceeds the limit"),
        ({"chat_template": "{{ f(a=1, a=2) }}"}, "not valid Jinja: keyword argument repeated"),
        ({"chat_template": 5}, "got a chat template of type int"),
    ],
)
def test_what_a_template_cannot_be_given_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises((TokenizerError, TypeError), match=problem):
        tokenizer(TEMPLATES["strings"]).render_chat([user("x")], **given)


def test_a_template_s_own_words_are_in_the_error() -> None:
    with pytest.raises(TokenizerError, match="cannot render these messages: no system here"):
        tokenizer(TEMPLATES["refusing"]).render_chat([SYSTEM, user("x")])


def test_the_caller_s_messages_are_left_alone_and_the_template_sees_no_object_of_theirs() -> None:
    class Role(StrEnum):
        USER = "user"

    @dataclass
    class Part:
        type: str
        text: str

    chat = [{"role": Role.USER, "content": (Part("text", "a"),), "n": np.int64(3), "none": None}]
    template = (
        "{{ messages[0].role.name }}{{ messages[0].n }}{{ messages[0].content }}{{ 'none' in messages[0] }}"
    )
    assert tokenizer(template).render_chat(chat) == "3aFalse"
    assert chat == [{"role": Role.USER, "content": (Part("text", "a"),), "n": np.int64(3), "none": None}]


# --- which template


def test_another_template_can_be_given_or_named() -> None:
    ours = Tokenizer(
        Backend(WordLevel({"x": 0}, unk_token="x")), SPECIAL, {"default": "d", "tool_use": "t", "rag": "r"}
    )
    assert ours.render_chat([user("x")]) == "d"
    assert ours.render_chat([user("x")], tools=TOOLS) == "t"
    assert ours.render_chat([user("x")], chat_template="rag", tools=TOOLS) == "r"
    assert ours.render_chat([user("x")], chat_template="my own {{ messages[0].content }}") == "my own x"
    for number in range(100):
        assert ours.render_chat([user("x")], chat_template=f"{number}") == f"{number}"


def test_a_model_without_one_can_be_given_one() -> None:
    ours = Tokenizer(Backend(WordLevel({"x": 0}, unk_token="x")), SPECIAL, None)
    with pytest.raises(TokenizerError, match=r"no chat template.*--chat-template"):
        ours.render_chat([user("x")])
    assert ours.render_chat([user("x")], chat_template="{{ messages[0].content }}") == "x"


def test_a_directory_may_have_several_templates(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    ours = tokenizer_from_directory(tmp_path)
    assert ours.render_chat([user("x")], tools=TOOLS) == "with tools"
    assert ours.render_chat([user("x")]).startswith("<|im_start|>user")


def test_a_gguf_file_may_have_several_templates() -> None:
    fields = {
        "tokenizer.chat_template": "d",
        "tokenizer.chat_template.tool_use": "t",
        "tokenizer.chat_templates": ["x"],
    }
    assert _chat_templates(fields) == {"default": "d", "tool_use": "t"}
