"""vLLM on the CPU: its engine as it ships (own process, torch.compile), prefix caching as told, no detokenising."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .protocol import Operation, TokenRecorder

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")  # each release belongs to one release of torch


class VllmSystem:
    """One engine. Steps are taken one at a time so that the first token is seen when it appears."""

    def load(
        self, model: str, dtype: str, max_model_len: int, max_num_seqs: int, prefix_caching: bool = False
    ) -> dict[str, Any]:
        """Start the engine; compiled as it ships, eager where compiling fails (reported as `mode`)."""
        refuse_foreign_packages()
        preload = _preload()
        self._vllm: Any = importlib.import_module("vllm")
        options = {
            "model": model,
            "dtype": dtype,
            "enable_prefix_caching": prefix_caching,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "seed": 0,
        }
        try:
            self._engine, mode = self._vllm.LLM(**options).llm_engine, "compiled"
        except Exception as error:  # whatever the compiler raises
            print(f"vLLM: compiled engine failed ({error}); starting it eager")
            self._engine, mode = self._vllm.LLM(**options, enforce_eager=True).llm_engine, "eager"
        self._count = 0
        return {"versions": _versions("vllm", "torch"), "mode": mode, "preload": preload}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        """Greedy tokens of exactly the length asked for."""
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, output_kind=_delta()
        )
        names = {f"{self._count}-{index}": index for index in range(len(prompts))}
        self._count += 1
        recorder = TokenRecorder(len(prompts))
        for name, index in names.items():
            self._engine.add_request(name, {"prompt_token_ids": prompts[index]}, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                recorder.add(names[output.request_id], list(output.outputs[0].token_ids))
        return recorder.result()


def refuse_foreign_packages() -> None:
    """Raises: RuntimeError naming the packages made for another torch, with which vLLM itself cannot be imported."""
    broken = [name for name in COMPANIONS if find_spec(name) is not None and not _imports(name)]
    if broken:
        torch = importlib.import_module("torch").__version__
        raise RuntimeError(
            f"{', '.join(broken)} cannot be imported with torch {torch}, so vLLM cannot either; remove what vLLM does "
            f"not need for text: {sys.executable} -m pip uninstall {' '.join(broken)}"
        )


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception as error:  # an operator or a symbol that this torch has not
        print(f"{name}: {error}")
        return False
    return True


def _preload() -> list[str]:
    """Give vLLM's own processes the libraries that its CPU guide says to preload, where they are installed."""
    places = [Path(sys.prefix, "lib"), Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64")]
    wanted = ["libtcmalloc_minimal.so.4", "libiomp5.so"]
    found = [next((str(at / name) for at in places if (at / name).exists()), None) for name in wanted]
    preload = [path for path in found if path]
    os.environ["LD_PRELOAD"] = ":".join(preload)
    return [os.path.basename(path) for path in preload]


def _delta() -> Any:
    return importlib.import_module("vllm.sampling_params").RequestOutputKind.DELTA


def _versions(*prefixes: str) -> dict[str, str]:
    # The CPU build is packaged under a name of its own.
    found = {dist.metadata["Name"]: dist.version for dist in distributions()}
    names = {*prefixes, *(f"{prefix}-cpu" for prefix in prefixes)}
    return {name: version for name, version in sorted(found.items()) if name in names}


def operations() -> dict[str, Operation]:
    """The requests that the worker answers, by name."""
    system = VllmSystem()
    return {"load": system.load, "generate": system.generate}
