"""How byte-level vocabularies cut text into words before merging, by the names that GGUF files have for it.

A GGUF file has only a name (`tokenizer.ggml.pre`). llama.cpp gives the names their meaning, so the rules here cut as
its do. Three go by the models' own tokenizers where llama.cpp simplifies them at the cost of whole languages: Tekken's
and GPT-4o's know the case of letters beyond ASCII and keep marks with their letters, and Qwen2's text is composed (NFC)
first. mistral-common and transformers do the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interlace.errors import TokenizerError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Words:
    """How text is cut into words, and what goes with that choice."""

    splits: tuple[str, ...]  # each cuts the pieces that the ones before it left, at its matches
    whole_words: bool = False  # a word that is in the vocabulary is taken whole, without merging
    compose: bool = False  # normalise to NFC first
    add_bos: bool = False  # when the file does not say


def _class(*ranges: tuple[int, int]) -> str:
    """A regular expression's class of the code points in `ranges`, both ends included, without the spaces there."""
    return "[" + "".join(rf"\x{{{first:04X}}}-\x{{{last:04X}}}" for first, last in ranges) + r"&&\S]"


_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # of English words
_SPACES = r"\s+(?!\S)|\s+"  # all but the last of a run, which stays with the word after it
_LINES = r"\s*[\r\n]+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+"

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{_SIGNS}|{_SPACES}"
_BY_DIGIT = rf"{_SUFFIX}|{_LETTERS}|\p{{N}}|{_SIGNS}[\r\n]*|{_LINES}|{_SPACES}"
_BY_THREE_DIGITS = _BY_DIGIT.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)

# Words with their case: capitals, then small letters. Letters without case and marks go with both.
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED_SIGNS = rf"{_SIGNS}[\r\n/]*|{_LINES}|{_SPACES}"
_TEKKEN = rf"{_BEFORE}{_CAPITALS}*{_SMALL}+|{_BEFORE}{_CAPITALS}+{_SMALL}*|\p{{N}}|{_CASED_SIGNS}"
_GPT4O = (
    rf"{_BEFORE}{_CAPITALS}*{_SMALL}+{_SUFFIX}?|{_BEFORE}{_CAPITALS}+{_SMALL}*{_SUFFIX}?"
    rf"|\p{{N}}{{1,3}}|{_CASED_SIGNS}"
)

# Letters with case that DeepSeek's first tokenizers knew: those of an older Unicode, without the mathematical ones.
_DEEPSEEK_LETTERS = """
    41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386 388-38A 38C 38E-3A1
    3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A
    1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4
    1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128
    212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 A640-A66D
    A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3
    104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
_DEEPSEEK_SIGNS = _class(
    (0x21, 0x2F), (0x3A, 0x7E), (0xFF01, 0xFF0F), (0xFF1A, 0xFF5E), (0x2018, 0x201F), (0x3000, 0x3002)
)
_DEEPSEEK_CJK = _class((0x4E00, 0x9FA5), (0x0800, 0x4E00), (0xAC00, 0xD7FF)) + "+"
_IDEOGRAPHS_AND_KANA = _class((0x4E00, 0x9FA5), (0x3040, 0x309F), (0x30A0, 0x30FF)) + "+"


def _ranges(table: str) -> list[tuple[int, int]]:
    ends = [entry.partition("-") for entry in table.split()]
    return [(int(first, 16), int(last or first, 16)) for first, _, last in ends]


_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?{_class(*_ranges(_DEEPSEEK_LETTERS))}+",
    rf"\s?{_DEEPSEEK_SIGNS}+",
    r"\s+\z",
    _DEEPSEEK_CJK,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")
_ASCII_SIGN_AND_LETTERS = r"[!-/:-@\[-`{-~][A-Za-z]+"
_MARKED_LETTERS = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK_V3_WORDS = rf"{_ASCII_SIGN_AND_LETTERS}|{_MARKED_LETTERS}| ?[\p{{P}}\p{{S}}]+"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    _IDEOGRAPHS_AND_KANA,
    rf"{_DEEPSEEK_V3_WORDS}[\r\n]*|{_LINES}|{_SPACES}",
)
_SPARK = (r"\p{N}{1,3}", _IDEOGRAPHS_AND_KANA, rf"{_DEEPSEEK_V3_WORDS}|[\r\n]|{_SPACES}", r"\p{N}")
_FALCON = (r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")
_DEFAULT = (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_BAILING = rf"'(?i:[sdmt]|ll|ve|re)|{_LETTERS}|\p{{N}}|{_SIGNS}[\r\n]*|\s*[\r\n]|{_SPACES}"
_SEED_CODER = rf"{_SUFFIX}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}|{_SPACES}"
_MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
_QWEN35 = f"{_SUFFIX}|{_MARKED}|{_LINES}|{_SPACES}"

_RULES = {
    "default": Words(_DEFAULT),
    "gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling": Words((_GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": Words((r"\p{N}", _GPT2)),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": Words(
        (_BY_THREE_DIGITS,), whole_words=True, add_bos=True
    ),
    "dbrx smaug-bpe chatglm-bpe": Words((_BY_THREE_DIGITS,)),
    "glm4 glm5": Words((_BY_THREE_DIGITS,), whole_words=True),
    "minicpm5": Words((r"\p{N}{1,3}", _BY_DIGIT.replace(r"\p{N}|", r"\p{N}+|", 1)), whole_words=True),
    "qwen2 deepseek-r1-qwen": Words((_BY_DIGIT,), compose=True),
    "megrez kormo f2llmv2 stablelm2 hunyuan solar-open grok-2": Words((_BY_DIGIT,)),
    "laguna": Words((r"[^\n]+|\n+", _BY_DIGIT)),
    "ufakzeka": Words((_BY_DIGIT.removeprefix(f"{_SUFFIX}|"),)),
    "qwen35": Words((_QWEN35,)),
    "tekken": Words((_TEKKEN,), whole_words=True, add_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Words((_GPT4O,)),
    "deepseek-llm": Words(_DEEPSEEK_LLM),
    "deepseek-coder": Words(_DEEPSEEK_CODER),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Words(_DEEPSEEK_V3),
    "spark2_5": Words(_SPARK),
    "falcon": Words(_FALCON),
    "poro-chat bloom gpt3-finnish": Words((_BLOOM,)),
    "viking": Words((_BLOOM, r"\p{N}")),
    "bailingmoe bailingmoe2 llada-moe": Words((_BAILING,)),
    "seed-coder": Words((_SEED_CODER,)),
}
PRE_TOKENIZERS = {name: words for names, words in _RULES.items() for name in names.split()}


def words_of(fields: Mapping[str, Any]) -> Words:
    """The rule that the file names.

    Files from before the name was written have none. They get llama.cpp's default, as they do there, rather than a
    refusal: nobody can say any more what was meant, and their users know the tokens that this rule gives.

    Raises:
        TokenizerError: the name is not known.
    """
    name = fields.get("tokenizer.ggml.pre", "")
    if name == "":
        _log.warning(
            "the GGUF file does not say how its text is cut into words (tokenizer.ggml.pre): llama.cpp's default rule "
            "is used, and answers may be worse for it; a newer conversion of the model would say"
        )
        name = "default"
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"the GGUF pre-tokenizer {name!r} is not one of the {len(PRE_TOKENIZERS)} known ones (docs/models.md lists "
            "them). Use the model's Hugging Face directory instead, whose tokenizer.json says how it works"
        )
    return PRE_TOKENIZERS[name]
