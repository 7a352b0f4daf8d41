"""Reads the JSON objects that sit beside a model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interlace.errors import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ConfigError when it is not one."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); fetch the model again") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def read_optional_json(path: Path) -> dict[str, Any] | None:
    """As `read_json`; None where there is no such file, or one without a byte: what a broken download leaves."""
    if not path.is_file() or path.stat().st_size == 0:
        return None
    return read_json(path)
