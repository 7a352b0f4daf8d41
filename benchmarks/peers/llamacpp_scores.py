"""How well llama.cpp predicts windows of tokens: a request in JSON on stdin, the answer as the last line of stdout."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np


def main() -> None:
    request = json.load(sys.stdin)
    lib: Any = importlib.import_module("llama_cpp")
    windows: list[list[int]] = request["windows"]
    model = lib.Llama(
        model_path=request["model"],
        n_ctx=len(windows[0]),
        n_batch=len(windows[0]),
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        logits_all=True,
        verbose=False,
    )
    nll = sum(_nll(model, window) for window in windows)
    count = sum(len(window) - 1 for window in windows)
    print(json.dumps({"nll": nll, "count": count, "version": version("llama_cpp_python")}))


def _nll(model: Any, window: Sequence[int]) -> float:
    """The sum over all tokens but the first, in nats."""
    model.reset()
    model.eval(window)
    logits = np.asarray(model.scores[: len(window) - 1], dtype=np.float64)
    top = logits.max(axis=1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((total - logits[np.arange(len(logits)), window[1:]]).sum())


if __name__ == "__main__":
    main()
