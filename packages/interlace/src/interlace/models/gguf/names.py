"""Which files are GGUF models, and how the parts of a model that was split are named.

Imports nothing heavy: a name is looked at before any library is loaded.
"""

from __future__ import annotations

import re
from pathlib import Path

from interlace.errors import CorruptFile

_MAGIC = b"GGUF"
_PART = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})(?P<of>-of-)(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE
)


def is_gguf(path: Path) -> bool:
    """Whether the file holds a GGUF model, by its first bytes, or claims to by its name."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise CorruptFile(f"{path} cannot be read: {error.strerror}") from error


def stem_of(name: str) -> str:
    """A GGUF file's name without its suffix and, for a part, without its number: what all parts share."""
    part = _PART.fullmatch(name)
    return part["stem"] if part else re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)


def names_of_parts(name: str) -> list[str]:
    """The names of all parts of the model that the file called `name` belongs to; itself where it is whole."""
    part = _PART.fullmatch(name)
    if part is None:
        return [name]
    count = int(part["count"])
    return [f"{part['stem']}-{i:05d}{part['of']}{count:05d}{part['suffix']}" for i in range(1, count + 1)]
