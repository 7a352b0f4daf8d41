"""The worker's side of the conversation: a JSON object per line in, a JSON object per line out.

Request `{"op": name, ...arguments}`; reply `{"ok": true, "result": {...}}` or `{"ok": false, "error": "..."}`.
`{"op": "quit"}` or the end of input ends the worker. What the system itself prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Operation = Callable[..., dict[str, Any]]


class TokenRecorder:
    """Takes the tokens of a batch as they appear, and the two times that matter. The clock starts here."""

    def __init__(self, num_sequences: int) -> None:
        self._tokens: list[list[int]] = [[] for _ in range(num_sequences)]
        self._waiting = set(range(num_sequences))  # sequences with no token yet
        self._first_s = 0.0
        self._num_at_first = 0
        self._start = time.perf_counter()

    def add(self, sequence: int, tokens: list[int]) -> None:
        """Append the new tokens of one sequence."""
        self._tokens[sequence] += tokens
        if self._waiting and tokens:
            self._waiting.discard(sequence)
            self._first_s = time.perf_counter() - self._start
            self._num_at_first = sum(map(len, self._tokens))

    def add_step(self, tokens: list[int]) -> None:
        """Append one token to every sequence."""
        for sequence, token in enumerate(tokens):
            self.add(sequence, [token])

    def result(self) -> dict[str, Any]:
        """Tokens per sequence, seconds until every sequence had one, tokens by then, and seconds in all."""
        return {
            "total_s": time.perf_counter() - self._start,
            "first_s": self._first_s,
            "num_at_first": self._num_at_first,
            "tokens": self._tokens,
        }


def main(kind: str) -> None:
    """Run the worker `kind` until it is told to quit."""
    replies = _claim_stdout()
    module = importlib.import_module(f".{kind}", __package__)
    converse(module.operations(), sys.stdin, replies)


def converse(operations: Mapping[str, Operation], requests: TextIO, replies: TextIO) -> None:
    """Answer each request line by the operation it names."""
    for line in requests:
        arguments = json.loads(line)
        op = arguments.pop("op")
        if op == "quit":
            return
        replies.write(json.dumps(_answer(operations, op, arguments)) + "\n")
        replies.flush()


def _answer(operations: Mapping[str, Operation], op: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if op not in operations:
        return {"ok": False, "error": f"got op {op!r}; expected one of {sorted(operations)}"}
    try:
        return {"ok": True, "result": operations[op](**arguments)}
    except Exception as error:  # reported to the driver, which decides; the worker stays usable
        traceback.print_exc()
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def _claim_stdout() -> TextIO:
    """Keep standard output for replies: whatever a library prints goes to standard error instead."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies
