"""The Pythons that peers run under: one for all of them, others for some."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from interlace.errors import BenchError

if TYPE_CHECKING:
    from benchmarks.serve.systems import System


@dataclass(frozen=True)
class Interpreters:
    """`default` runs every peer that `named` does not name, by system ("llamacpp-no-amx") or by kind ("llamacpp")."""

    default: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, values: Iterable[str], names: Iterable[str]) -> Interpreters:
        """Reads "PYTHON" and "NAME=PYTHON", any number of them.

        Raises: BenchError for a name that is not among `names`, and for two Pythons of one name.
        """
        known, found = list(names), {}
        for value in values:
            name, is_named, python = value.rpartition("=")
            if is_named and name not in known:
                raise BenchError(
                    f"got --peer-python {value}; expected PYTHON or NAME=PYTHON, NAME one of {known}"
                )
            if name in found:
                raise BenchError(f"got two --peer-python for {name or 'all peers'}; expected one")
            found[name] = python
        return cls(found.pop("", None), found)

    def of(self, system: System) -> str | None:
        """The Python that runs `system`; None for a peer that has none."""
        if not system.is_peer:
            return sys.executable
        if system.needs_own_python:
            return self.named.get(system.name)
        return self.named.get(system.name) or self.named.get(system.kind) or self.default
