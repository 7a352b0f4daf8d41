"""A model hub on this machine: an HTTP server that speaks as much of the Hugging Face hub's protocol as is needed."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "c0ffee" * 6 + "cafe"


class FakeHub:
    """`directory` holds the repositories, as organisation/model/files. `requests` are the paths asked for.

    While it `is_down` it answers that it is unavailable.
    """

    def __init__(self, directory: Path, address: str) -> None:
        self.directory, self.address = directory, address
        self.requests: list[str] = []
        self.is_down = False

    def repository(self, repo_id: str) -> Path:
        """The directory of a repository, made if it is not there."""
        path = self.directory / repo_id
        path.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def serve_fake_hub(directory: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub that huggingface_hub speaks to inside the block, with an empty cache of its own."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = FakeHub(directory, f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub: FakeHub = self.server.hub  # type: ignore[attr-defined]
        path = self.path.partition("?")[0].strip("/")
        hub.requests.append(path)
        if hub.is_down:
            self._send(503, b"", {}, with_body)
            return
        match path.split("/"):
            case ["api", "models", owner, name, "tree", _]:
                self._send_json(self._tree(hub, f"{owner}/{name}"), with_body)
            case ["api", "models", owner, name, *_]:
                self._send_json(self._info(hub, f"{owner}/{name}"), with_body)
            case [owner, name, "resolve", _, *rest]:
                self._send_file(hub.directory / owner / name / "/".join(rest), with_body)
            case _:
                self._send(404, b"", {}, with_body)

    def _info(self, hub: FakeHub, repo_id: str) -> Any:
        tree = self._tree(hub, repo_id)
        if tree is None:
            return None
        siblings = [{"rfilename": file["path"]} for file in tree]
        return {"id": repo_id, "modelId": repo_id, "sha": COMMIT, "siblings": siblings, "private": False}

    def _tree(self, hub: FakeHub, repo_id: str) -> Any:
        root = hub.directory / repo_id
        if not root.is_dir():
            return None
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return [
            {
                "type": "file",
                "path": str(path.relative_to(root)),
                "size": path.stat().st_size,
                "oid": _digest(path),
            }
            for path in files
        ]

    def _send_json(self, content: Any, with_body: bool) -> None:
        if content is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        else:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, with_body)

    def _send_file(self, path: Path, with_body: bool) -> None:
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, with_body)
            return
        headers = {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": COMMIT}
        self._send(200, path.read_bytes(), headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
