"""Settings: the keys of a model's configuration, and which of them nobody has asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Settings(Mapping[str, Any]):
    """A configuration's keys and values, which remembers the keys that were asked for, absent ones too."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def unread(self) -> Iterator[tuple[str, Any]]:
        """The keys that are there and that nobody has asked for, with their values."""
        for key in self._values:
            if key not in self._asked:
                yield key, self._values[key]
