"""Fetches a model directory from the Hugging Face hub, into that library's own cache (HF_HOME, HF_TOKEN as usual)."""

from __future__ import annotations

import json
import re
from pathlib import Path

from interlace.errors import ModelNotFound
from interlace.models.progress import Progress

_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_PATTERNS = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
_IGNORED = ["original/*", "*/*.safetensors", "consolidated*.safetensors"]  # the same weights in other layouts


def is_hub_id(name: str) -> bool:
    """Whether `name` reads like "organisation/model"."""
    return _ID.fullmatch(name) is not None


def find_cached(repo_id: str) -> Path | None:
    """The model's directory if it was fetched before, whole; asks no network."""
    import huggingface_hub

    try:
        directory = Path(huggingface_hub.snapshot_download(repo_id, local_files_only=True))
    except (OSError, ValueError):
        return None
    return directory if _is_whole(directory) else None


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


def fetch_from_hub(repo_id: str, progress: Progress) -> Path:
    """The model's directory, fetched or brought up to date.

    Raises:
        ModelNotFound: no such model, no access to it, or no network.
    """
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if progress.quiet:
        disable_progress_bars()
    try:
        return Path(
            huggingface_hub.snapshot_download(repo_id, allow_patterns=_PATTERNS, ignore_patterns=_IGNORED)
        )
    except Exception as error:  # the library's own errors, and those of the HTTP client under it
        raise ModelNotFound(_advice(repo_id, error)) from error
    finally:
        if progress.quiet:
            enable_progress_bars()


def _advice(repo_id: str, error: Exception) -> str:
    from huggingface_hub import errors

    kind = f"{type(error).__name__}: {error}"
    if isinstance(error, errors.GatedRepoError):
        return f"the hub keeps {repo_id!r} behind a licence: accept it on the model's page and set HF_TOKEN ({kind})"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no model {repo_id!r}, or HF_TOKEN gives no access to it ({kind})"
    return (
        f"cannot fetch {repo_id!r} from the hub, and there is neither such a path nor a cached copy. Check the "
        f"network (HF_HUB_OFFLINE must not be set), or name a directory or .gguf file that is already here ({kind})"
    )
