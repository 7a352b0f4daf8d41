"""Names of full blocks: two blocks with one name hold the same keys and values, with the native kernels to the bit.

What a block holds follows from its tokens, from all tokens before them, and from what the engine computes with. So a
name is a hash of its parent's name and of its tokens, and the parent of a text's first block is a root: a hash of the
rest, of the request's salt, and of how its positions are rotated. Names are compared in full.
"""

from __future__ import annotations

import os
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from tokenweave.kernels import BLOCK_SIZE

NAME_BYTES = 32
Int32Array = npt.NDArray[np.int32]


class Roots:
    """The roots of the texts of one engine. They begin with bytes drawn for it: its names mean nothing to another."""

    def __init__(self) -> None:
        self._engine = os.urandom(NAME_BYTES)

    def of(self, salt: str | None, length_kind: int) -> bytes:
        """The root of a request's text. Texts of different salts share no name.

        length_kind: `ModelConfig.length_kind` of its prompt.
        """
        salted = b"" if salt is None else b"salt" + salt.encode("utf-8", "surrogatepass")
        return _hash(self._engine, length_kind.to_bytes(8, "little"), salted)


class TextNames:
    """The names of one text's full blocks, made as they are asked for."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._names: list[bytes] = []

    def first(self, count: int, tokens: Int32Array) -> list[bytes]:
        """Those of the first `count` blocks of `tokens`, which go on as they did when it was last asked."""
        for index in range(len(self._names), count):
            parent = self._names[-1] if self._names else self._root
            block = tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            self._names.append(_hash(parent, block.tobytes()))
        return self._names[:count]


def _hash(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=NAME_BYTES).digest()
