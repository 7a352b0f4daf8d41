from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from interlace.engine.text import TextAssembler
from support.engine_fakes import ByteDecoder


def assemble(text: str | bytes, stop: tuple[str, ...]) -> tuple[list[str], TextAssembler]:
    """The pieces that come out as `text` goes in byte by byte."""
    assembler = TextAssembler(ByteDecoder(), stop)
    pieces = []
    for byte in text.encode() if isinstance(text, str) else text:
        pieces.append(assembler.push(byte))
        if assembler.stopped_by is not None:
            return pieces, assembler
    pieces.append(assembler.finish())
    return pieces, assembler


def cut_at_first_stop(text: str, stop: tuple[str, ...]) -> str:
    """The text up to where the first completed stop string begins."""
    for end in range(len(text) + 1):
        hits = [end - len(string) for string in stop if text[:end].endswith(string)]
        if hits:
            return text[: min(hits)]
    return text


def test_text_is_cut_before_the_stop_string() -> None:
    pieces, assembler = assemble("one STOP two", ("STOP",))
    assert "".join(pieces) == assembler.text == "one "
    assert assembler.stopped_by == "STOP"


def test_what_could_become_a_stop_string_is_held_back_until_it_cannot() -> None:
    pieces, _ = assemble("aSTxb", ("STOP",))
    assert pieces == ["a", "", "", "STx", "b", ""]


def test_what_is_held_back_comes_out_at_the_end() -> None:
    pieces, assembler = assemble("aST", ("STOP",))
    assert pieces == ["a", "", "", "ST"]
    assert assembler.stopped_by is None


def test_a_character_comes_out_whole_or_not_at_all() -> None:
    pieces, _ = assemble("é🙂", ())
    assert pieces == ["", "é", "", "", "", "🙂", ""]


def test_an_unfinished_character_at_the_end_is_replaced() -> None:
    pieces, _ = assemble("🙂".encode()[:2], ())
    assert "".join(pieces) == "\ufffd"


def test_a_stop_string_made_visible_by_the_end_counts() -> None:
    pieces, assembler = assemble("ab🙂".encode()[:4], ("b\ufffd",))
    assert "".join(pieces) == "a"
    assert assembler.stopped_by == "b\ufffd"


@given(
    st.text(alphabet="abé", max_size=30),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=5), max_size=4).map(tuple),
)
def test_deltas_join_to_the_text_cut_at_the_first_stop_string(text: str, stop: tuple[str, ...]) -> None:
    pieces, assembler = assemble(text, stop)
    assert "".join(pieces) == assembler.text == cut_at_first_stop(text, stop)
    assert (assembler.stopped_by is not None) == any(string in text for string in stop)
