"""Models on the hub: directories, GGUF files by name or quantisation, and what is said where there is a choice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from interlace.errors import ModelNotFound
from interlace.models.hub import HubName, choose_gguf
from interlace.models.sources import load_model, pull, resolve
from support.fake_hub import FakeHub, serve_fake_hub
from support.tiny_models import make_gguf, make_model


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve_fake_hub(tmp_path / "hub", tmp_path / "cache", monkeypatch) as hub:
        yield hub


@pytest.fixture
def quantised(hub: FakeHub) -> FakeHub:
    """A hub with org/many-GGUF: two whole models, one split in a folder, and an image encoder."""
    root = hub.repository("org/many-GGUF")
    make_gguf(root / "many-Q8_0.gguf", "Q8_0")
    make_gguf(root / "many-Q4_0.gguf", "Q4_0")
    (root / "F16").mkdir()
    make_gguf(root / "F16" / "many-f16.gguf", "F16", max_tensors=4)
    (root / "mmproj-many-f16.gguf").write_bytes(b"GGUF")
    (root / "config.json").write_text("{}")
    return hub


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", HubName("org/name")),
        ("org/name:Q4_K_M", HubName("org/name", quantisation="Q4_K_M")),
        ("org/name-GGUF/x-Q4_0.gguf", HubName("org/name-GGUF", file="x-Q4_0.gguf")),
        ("org/name/Q8_0/x-00001-of-00002.GGUF", HubName("org/name", file="Q8_0/x-00001-of-00002.GGUF")),
        ("org/name.gguf", None),
        ("org/name/config.json", None),
        ("org/name:", None),
        ("org", None),
        ("./org/name", None),
        ("/org/name", None),
        ("", None),
    ],
)
def test_names_on_the_hub(name: str, expected: HubName | None) -> None:
    assert HubName.parse(name) == expected
    assert expected is None or str(expected) == name


def test_a_directory_is_fetched_once_and_found_without_the_network(hub: FakeHub) -> None:
    root = hub.repository("org/name")
    make_model(root)
    (root / "README.md").touch()
    (root / "pytorch_model.bin").touch()
    directory = resolve("org/name", quiet=True)
    assert {"config.json", "model.safetensors"} <= {path.name for path in directory.iterdir()}
    assert not {"README.md", "pytorch_model.bin"} & {path.name for path in directory.iterdir()}
    hub.requests.clear()
    assert resolve("org/name", quiet=True) == directory
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("org/many-GGUF:Q4_0", "many-Q4_0.gguf"),
        ("org/many-GGUF:q8_0", "many-Q8_0.gguf"),
        ("org/many-GGUF/many-Q4_0.gguf", "many-Q4_0.gguf"),
        ("org/many-GGUF:F16", "F16/many-f16-00001-of-00003.gguf"),
        ("org/many-GGUF/F16/many-f16-00002-of-00003.gguf", "F16/many-f16-00001-of-00003.gguf"),
    ],
)
def test_one_gguf_model_of_a_repository_is_fetched(quantised: FakeHub, name: str, file: str) -> None:
    path = resolve(name, quiet=True)
    assert str(path).endswith(file)
    root = quantised.repository("org/many-GGUF")
    fetched = [str(p.relative_to(path.parents[file.count("/")])) for p in sorted(path.parent.glob("*"))]
    assert all(part.startswith(file[:10]) for part in fetched)
    assert path.read_bytes() == (root / file).read_bytes()
    quantised.requests.clear()
    assert load_model(name).config.family == "llama"
    assert quantised.requests == []


def test_a_choice_is_left_to_the_user(quantised: FakeHub) -> None:
    with pytest.raises(
        ModelNotFound, match=r"may be any of 3 GGUF models: F16/.*, many-Q4_0\.gguf, many-Q8_0"
    ) as e:
        resolve("org/many-GGUF", quiet=True)
    assert "mmproj" not in str(e.value)
    with pytest.raises(
        ModelNotFound, match=r"has no GGUF model 'org/many-GGUF:Q2_K'; it has F16/.*many-Q8_0\.gguf"
    ):
        resolve("org/many-GGUF:Q2_K", quiet=True)
    with pytest.raises(ModelNotFound, match=r"has no GGUF model 'org/many-GGUF/other\.gguf'"):
        pull("org/many-GGUF/other.gguf", quiet=True)


def test_the_only_gguf_model_needs_no_choice_even_offline(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_gguf(hub.repository("org/one") / "one.Q8_0.gguf")
    path = resolve("org/one", quiet=True)
    assert path.name == "one.Q8_0.gguf"
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("org/one", quiet=True) == path
    assert resolve("org/one:Q8_0", quiet=True) == path


def test_a_repository_that_is_not_there_is_told(hub: FakeHub) -> None:
    for name in ("org/none", "org/none:Q4_0", "org/none/model.gguf"):
        with pytest.raises(ModelNotFound, match="the hub has no model 'org/none'"):
            resolve(name, quiet=True)


def test_a_repository_without_gguf_files_is_told(hub: FakeHub) -> None:
    make_model(hub.repository("org/name"))
    with pytest.raises(ModelNotFound, match="'org/name' has no GGUF file"):
        resolve("org/name:Q4_0", quiet=True)


@pytest.mark.parametrize("name", ["org/name", "org/name:Q4_0"])
def test_a_hub_that_is_down_is_told_at_once(hub: FakeHub, name: str) -> None:
    hub.is_down = True
    with pytest.raises(ModelNotFound, match=f"cannot fetch '{name}' from the hub"):
        resolve(name, quiet=True)
    asked = [path for path in hub.requests if "org/name" in path]
    assert len(asked) == 1


def test_parts_that_the_hub_lacks_are_named(quantised: FakeHub) -> None:
    (quantised.repository("org/many-GGUF") / "F16" / "many-f16-00003-of-00003.gguf").unlink()
    with pytest.raises(ModelNotFound, match=r"lacks parts of .*: F16/many-f16-00003-of-00003\.gguf"):
        resolve("org/many-GGUF:f16", quiet=True)


def test_a_quantisation_is_a_whole_word() -> None:
    files = ["m-Q4_K_S.gguf", "m-IQ4_K.gguf", "m.Q4_K.gguf", "m-Q4_K_M.gguf"]
    assert choose_gguf(HubName("o/m", quantisation="q4_k"), files) == ["m.Q4_K.gguf"]
    with pytest.raises(ModelNotFound, match="may be any of 2 GGUF models"):
        choose_gguf(HubName("o/m", quantisation="Q4_0"), ["a/m-Q4_0.gguf", "b/m-Q4_0.gguf"])
