"""Fetches models from the Hugging Face hub, into that library's own cache (HF_HOME, HF_TOKEN as usual).

A repository is fetched as a model directory. Of one with GGUF files a single model is: the only one there, or that
whose file or quantisation is named.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interlace.errors import ModelError, ModelNotFound
from interlace.models.gguf.names import names_of_parts, stem_of
from interlace.models.progress import Progress

FORMS = "organisation/model, organisation/model:QUANTISATION or organisation/model/FILE.gguf"
_NAME = re.compile(
    r"(?P<repo_id>\w[\w.-]*/\w[\w.-]*)(:(?P<quantisation>\w[\w.-]*)|/(?P<file>.+\.gguf))?", re.IGNORECASE
)
_PATTERNS = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
_IGNORED = ["original/*", "*/*.safetensors", "consolidated*.safetensors"]  # the same weights in other layouts
_NO_MODEL = re.compile(
    r"mmproj|imatrix", re.IGNORECASE
)  # what lies beside models: image encoders, statistics
_MOST_LISTED = 30


@dataclass(frozen=True)
class HubName:
    """A model on the hub."""

    repo_id: str  # organisation/model
    quantisation: str | None = None  # of the GGUF model, say Q4_K_M
    file: str | None = None  # the GGUF model, or any part of it, as a path in the repository

    @classmethod
    def parse(cls, name: str) -> HubName | None:
        """Reads `name`, if it has one of FORMS."""
        found = _NAME.fullmatch(name)
        if found is None or (found["file"] is None and found["repo_id"].lower().endswith(".gguf")):
            return None  # a file that is not there rather than a model called so
        return cls(found["repo_id"], found["quantisation"], found["file"])

    def __str__(self) -> str:
        if self.file is not None:
            return f"{self.repo_id}/{self.file}"
        return self.repo_id if self.quantisation is None else f"{self.repo_id}:{self.quantisation}"

    @property
    def is_gguf(self) -> bool:
        """Whether it names one GGUF model of its repository."""
        return self.file is not None or self.quantisation is not None


def find_cached(name: HubName) -> Path | None:
    """The model's directory or GGUF file if it was fetched before, whole; asks no network."""
    directory = _cached_snapshot(name.repo_id)
    if directory is None:
        return None
    if not name.is_gguf:
        return directory if _is_whole(directory) else None
    try:
        files = choose_gguf(name, _files_in(directory))
    except ModelNotFound:
        return None
    return directory / files[0] if all((directory / file).is_file() for file in files) else None


def fetch_from_hub(name: HubName, progress: Progress) -> Path:
    """The model's directory or GGUF file (the first of its parts), fetched or brought up to date.

    Raises:
        ModelNotFound: no such model, no access to it, no network, or several models to choose from.
    """
    import huggingface_hub

    with _told_as_ours(name, progress):
        files = _repository_files(name.repo_id)
        if name.is_gguf or (_gguf_models(files) and not any(file.endswith(".safetensors") for file in files)):
            return _fetch_gguf(name, files)
        fetched = huggingface_hub.snapshot_download(
            name.repo_id, allow_patterns=_PATTERNS, ignore_patterns=_IGNORED
        )
        return Path(fetched)


def choose_gguf(name: HubName, files: Iterable[str]) -> list[str]:
    """The parts of the GGUF model that `name` means, out of a repository's files. Raises ModelNotFound."""
    models = _gguf_models(files)
    found = sorted({key for key in models if _means(name, key)})
    if len(found) == 1:
        return _parts(models[found[0]])
    listed = sorted(models[key] for key in (found or models))
    shown = ", ".join(listed[:_MOST_LISTED]) + (", …" if len(listed) > _MOST_LISTED else "")
    if not listed:
        raise ModelNotFound(f"the hub's {name.repo_id!r} has no GGUF file")
    if found:
        raise ModelNotFound(
            f"{str(name)!r} may be any of {len(found)} GGUF models: {shown}; name one of them, as "
            f"{name.repo_id}:QUANTISATION or {name.repo_id}/FILE"
        )
    raise ModelNotFound(f"the hub's {name.repo_id!r} has no GGUF model {str(name)!r}; it has {shown}")


def _means(name: HubName, key: str) -> bool:
    """Whether the model whose parts share the path `key` is the one that `name` names."""
    if name.file is not None:
        return key == _key(name.file)
    if name.quantisation is None:
        return True
    return re.search(rf"(^|[-._/]){re.escape(name.quantisation)}$", key, re.IGNORECASE) is not None


def _gguf_models(files: Iterable[str]) -> dict[str, str]:
    """The first part of each GGUF model among `files`, by the path that its parts share."""
    models: dict[str, str] = {}
    for file in sorted(files):
        if file.lower().endswith(".gguf") and not _NO_MODEL.search(Path(file).name):
            models.setdefault(_key(file), file)
    return models


def _key(file: str) -> str:
    return str(Path(file).with_name(stem_of(Path(file).name)))


def _parts(file: str) -> list[str]:
    """The paths of all parts of the model that `file` is a part of."""
    return [str(Path(file).with_name(part)) for part in names_of_parts(Path(file).name)]


def _fetch_gguf(name: HubName, files: list[str]) -> Path:
    import huggingface_hub

    parts = choose_gguf(name, files)
    missing = [part for part in parts if part not in files]
    if missing:
        raise ModelNotFound(f"the hub's {name.repo_id!r} lacks parts of {parts[0]}: {', '.join(missing[:4])}")
    wanted = [glob.escape(part) for part in parts]
    return Path(huggingface_hub.snapshot_download(name.repo_id, allow_patterns=wanted)) / parts[0]


def _repository_files(repo_id: str) -> list[str]:
    """Returns the files that the hub lists, or those in the cache where the hub cannot be asked."""
    import huggingface_hub

    try:  # not list_repo_files: without a network that tries for 23 s
        listed = huggingface_hub.HfApi().model_info(repo_id).siblings or []
        return [file.rfilename for file in listed]
    except Exception:
        cached = _cached_snapshot(repo_id)
        if cached is None:
            raise
        return _files_in(cached)


def _files_in(directory: Path) -> list[str]:
    return [str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()]


def _cached_snapshot(repo_id: str) -> Path | None:
    """The directory that holds what was fetched of a repository, which may be a part of it."""
    import huggingface_hub

    try:  # without a pattern the library would miss the files that were never asked for
        return Path(huggingface_hub.snapshot_download(repo_id, local_files_only=True, allow_patterns=[]))
    except (OSError, ValueError):
        return None


def _is_whole(directory: Path) -> bool:
    if not (directory / "config.json").is_file():
        return False
    if (directory / "model.safetensors").is_file():
        return True
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        files = list(
            directory.glob("*.safetensors")
        )  # a shard of many, whose index is yet to come, is not it
        return len(files) == 1 and "-of-" not in files[0].name
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return False
    return all((directory / name).is_file() for name in names)


@contextmanager
def _told_as_ours(name: HubName, progress: Progress) -> Iterator[None]:
    """The library's progress bars where they are wanted, and its errors as ModelNotFound."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if progress.quiet:
        disable_progress_bars()
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # the library's own errors, and those of the HTTP client under it
        raise ModelNotFound(_advice(name, error)) from error
    finally:
        if progress.quiet:
            enable_progress_bars()


def _advice(name: HubName, error: Exception) -> str:
    from huggingface_hub import errors

    repo_id, kind = name.repo_id, f"{type(error).__name__}: {error}"
    if isinstance(error, errors.GatedRepoError):
        return f"the hub keeps {repo_id!r} behind a licence: accept it on the model's page and set HF_TOKEN ({kind})"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no model {repo_id!r}, or HF_TOKEN gives no access to it ({kind})"
    return (
        f"cannot fetch {str(name)!r} from the hub, and there is neither such a path nor a cached copy. Check the "
        f"network (HF_HUB_OFFLINE must not be set), or name a directory or GGUF file that is already here ({kind})"
    )
