"""Text from files and other processes, as a terminal may be shown it.

Whoever makes a pool, a tier or a process chooses its name. A terminal obeys control characters in it, and rich obeys
markup; neither reaches them from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def printable(text: str) -> str:
    """`text` with an escape (`\\x1b`, `\\u202e`) for each character that is none to be read."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def cell(text: str) -> Text:
    """The same for a table of rich's, which takes brackets in it for what they are."""
    from rich.text import Text

    return Text(printable(text))
