"""FieldError: a value that a configuration cannot have, said in the words of the file that it was read from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from interlace.errors import ConfigError

_FIELD = re.compile(r"\{(\w+)\}")


class FieldError(ConfigError):
    """A ConfigError whose message names fields in braces: "{num_heads} must be at least 1, got 0".

    Whoever made the configuration reads the fields' names; whoever wrote a file reads the file's keys instead.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        super().__init__(_FIELD.sub(r"\1", template))


@contextmanager
def keys_of(file: str, keys: Mapping[str, str]) -> Iterator[None]:
    """Has a FieldError inside the block name the file, and its keys in place of fields that have one."""
    try:
        yield
    except FieldError as error:
        text = _FIELD.sub(lambda field: keys.get(field[1], field[1]), error.template)
        raise ConfigError(f"{file}: {text}") from None
