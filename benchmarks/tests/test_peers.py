"""The peers' side, with modules that stand for theirs."""

import subprocess
import sys
from pathlib import Path

from benchmarks.peers import start_command

TORCH = "__version__ = '2.13.0'\n"
MISMATCHED = "raise RuntimeError('operator torchvision::nms does not exist')\n"


def load_vllm(tmp_path: Path, **modules: str) -> str:
    """The reply of a vLLM worker that finds these modules, name by name, before any others."""
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    done = subprocess.run(
        start_command(sys.executable, "vllm"),
        input='{"op": "load", "model": "m", "dtype": "bfloat16", "max_model_len": 1, "max_num_seqs": 1}\n',
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout


def test_a_package_of_another_torch_is_named_with_what_removes_it(tmp_path: Path) -> None:
    reply = load_vllm(tmp_path, torch=TORCH, torchvision=MISMATCHED, torchaudio="", vllm="")
    assert "torchvision cannot be imported with torch 2.13.0" in reply
    assert '-m pip uninstall torchvision"' in reply


def test_packages_that_match_are_no_hindrance(tmp_path: Path) -> None:
    reply = load_vllm(
        tmp_path, torch=TORCH, torchvision="", vllm="raise ImportError('vLLM itself was reached')"
    )
    assert "vLLM itself was reached" in reply
