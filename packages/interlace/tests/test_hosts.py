"""One model over two hosts: network namespaces joined by a cable, ranks over gloo, started as torchrun would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.namespaces import NetworkHost, torchrun_variables
from support.tiny_models import make_model

INTERLACE = str(Path(sys.executable).with_name("interlace"))
PORT = 29417
LIMIT_S = 100.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    return make_model(directory, "llama_9_heads", max_position_embeddings=100_000)


def command(model: Path, *options: str) -> list[str]:
    fixed = ["--dtype", "float32", "--temperature", "0", "--ignore-eos", "--raw", "--num-kv-blocks", "6500"]
    return [INTERLACE, "generate", "--model", str(model), *fixed, *options]


def start_on_both(hosts: tuple[NetworkHost, NetworkHost], command: list[str]) -> list[subprocess.Popen[str]]:
    return [
        host.start(
            command,
            torchrun_variables(rank, 2, hosts[0], PORT),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank, host in enumerate(hosts)
    ]


def test_two_hosts_generate_the_tokens_of_one(
    two_hosts: tuple[NetworkHost, NetworkHost], model: Path
) -> None:
    line = command(model, "--max-tokens", "12", "--json", "Overlap every byte")
    alone = subprocess.run(line, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    ranks = start_on_both(two_hosts, line)
    printed = [rank.communicate(timeout=LIMIT_S) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], printed
    assert printed[1][0] == "", "only rank 0 answers"
    expected, got = json.loads(alone.stdout), json.loads(printed[0][0])
    assert got["token_ids"] == expected["token_ids"]
    assert facts(got) == {"tp": 2, "communicator": "torch"}


def facts(printed: dict[str, Any]) -> dict[str, Any]:
    return {key: printed[key] for key in ("tp", "communicator")}


def test_the_death_of_a_host_ends_the_job_with_its_name(
    two_hosts: tuple[NetworkHost, NetworkHost], model: Path
) -> None:
    ranks = start_on_both(two_hosts, command(model, "--max-tokens", "90000", "Overlap every byte"))
    try:
        assert ranks[0].stdout is not None
        assert ranks[0].stdout.read(20)  # it is answering
        ranks[1].kill()
        _, stderr = ranks[0].communicate(timeout=LIMIT_S)
        assert ranks[0].returncode == 1
        assert "error: " in stderr
        assert "rank 1" in stderr
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
