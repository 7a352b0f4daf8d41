"""ModelConfig: a decoder-only model as data, whatever file it was read from.

Pure Python: reading a configuration imports neither torch nor a tokenizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from interlace.models.families import ATTENTION, MLP, Activation, NormPlacement
from interlace.models.field_error import FieldError

RopeScaling = Literal["linear", "llama3", "yarn", "dynamic", "longrope"]
FULL_ATTENTION, SLIDING_ATTENTION = (
    "full_attention",
    "sliding_attention",
)  # kinds of layers, as transformers names them
BIASABLE = (*ATTENTION, *MLP)  # a layer's matrices that may have a bias
_MAX_LAYERS, _MAX_EXPERTS = (
    1000,
    1000,
)  # beyond any model: a damaged file must not make us list weights for ever
_MAX_POSITION = 2**31 - 1  # positions are int32
_LEAST_DIVISOR = 1e-30  # of a frequency: a smaller one is nothing in float32


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: the base and how its frequencies are stretched to longer contexts.

    `scaling` is None (plain), "linear", "llama3" (Llama 3.1), "yarn" (arXiv 2309.00071), "dynamic" (NTK-aware, by the
    length of the text) or "longrope" (arXiv 2402.13753: other divisors for long texts than for short ones).
    """

    theta: float
    scaling: RopeScaling | None = None
    factor: float = 1.0  # longrope: frequencies are divided by it as well
    original_max_position: int = 0  # the context length before stretching, in tokens; linear: 0 if not stated
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: round the corrected range to whole dimensions
    attention_factor: float = 1.0  # multiplies cos and sin
    divisors: tuple[float, ...] = ()  # of each frequency, in GGUF files: Llama 3.1's scaling is carried so
    short_divisors: tuple[float, ...] = ()  # longrope: in texts within the original context
    long_divisors: tuple[float, ...] = ()  # longrope: in longer ones

    @property
    def depends_on_length(self) -> bool:
        """Whether a token is rotated otherwise in a long text than in a short one."""
        return self.scaling in ("dynamic", "longrope")

    def __post_init__(self) -> None:
        if not self.theta > 1:
            raise FieldError(f"rope theta must be greater than 1, got {self.theta}")
        if not self.factor > 0:
            raise FieldError(f"rope scaling factor must be positive, got {self.factor}")
        if self.scaling not in (None, "linear") and self.original_max_position <= 0:
            raise FieldError(
                f"rope scaling {self.scaling!r} needs the context length before scaling "
                f"(original_max_position_embeddings), got {self.original_max_position}"
            )
        for divisors in (self.divisors, self.short_divisors, self.long_divisors):
            if not all(_LEAST_DIVISOR < divisor < math.inf for divisor in divisors):
                raise FieldError(f"rope divisors must be positive numbers, got {divisors}")
        if self.scaling == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise FieldError(
                "rope scaling 'llama3' needs 0 < low_freq_factor < high_freq_factor, "
                f"got {self.low_freq_factor} and {self.high_freq_factor}"
            )


def context_length(rope: RopeConfig, max_position: int) -> int:
    """The longest text in tokens for which a model is meant whose files say `max_position`.

    Where scaling stretches a context by a factor, many files name the length before it. It is the larger of the two.
    """
    if rope.scaling not in ("linear", "dynamic", "yarn"):
        return max_position
    return max(max_position, int((rope.original_max_position or max_position) * rope.factor))


def check_num_layers(num_layers: int) -> None:
    """Raises FieldError for a number of layers that no model has, before anything is listed by layer."""
    if num_layers < 1:
        raise FieldError(f"{{num_layers}} must be at least 1, got {num_layers}")
    if num_layers > _MAX_LAYERS:
        raise FieldError(f"{{num_layers}} must be at most {_MAX_LAYERS}, got {num_layers}")


@dataclass(frozen=True)
class ModelConfig:
    """The numbers that define a decoder. Every weight's shape follows from them (see `weight_shapes`)."""

    family: str  # the name of its record in `interlace.models.families`
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int  # context length in tokens
    rope: RopeConfig
    tie_word_embeddings: bool = False
    biases: tuple[str, ...] = ()  # the matrices, of BIASABLE, that have a bias in every layer
    qk_norm: bool = False
    sliding_window: int | None = None  # keys a token sees, itself included; None: all
    activation: Activation = "silu"
    norms: NormPlacement = "before"  # of the sublayers, "after" them (before the residual), or "around" them
    qk_norm_over_heads: bool = False  # qk_norm is of all heads of q as one vector, and of all of k
    embedding_scale: float = 1.0
    query_pre_attn_scalar: float | None = None  # scores are divided by its square root; None: head_dim
    attention_softcap: float | None = None  # a bound of the scores
    logit_softcap: float | None = None
    local_rope: RopeConfig | None = None  # of the layers with a window; None: as the others
    full_layers: tuple[int, ...] = ()  # layers that see the whole text, where the others have a window
    num_experts: int = 0  # 0: a dense MLP; else `intermediate_size` is that of each expert
    experts_per_token: int = 0
    norm_topk: bool = True  # the chosen experts' weights are divided by their sum
    shared_intermediate_size: int = 0  # of an expert that every token runs through; 0: there is none
    dense_layers: tuple[int, ...] = ()  # layers with a dense MLP, where the others have experts
    dense_intermediate_size: int = 0  # of those layers
    eos_token_ids: tuple[int, ...] = field(default=())
    bos_token_id: int | None = None

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_heads()
        self._check_experts()
        self._check_biases()

    @property
    def attention_scale(self) -> float:
        """The factor of a query times a key."""
        found: float = (self.query_pre_attn_scalar or self.head_dim) ** -0.5
        return found

    def window_of(self, layer: int) -> int | None:
        """The last keys that a token sees in a layer; None: all."""
        return None if layer in self.full_layers else self.sliding_window

    def length_kind(self, num_prompt: int) -> int:
        """A number that two prompts have in common if their tokens are rotated alike, position by position.

        0 for all but long ones, where rotation depends on the length of the text (see `Rotations`): dynamic scaling
        rotates each length in its own way, longrope all that are long in one.
        """
        ropes = [rope for rope in (self.rope, self.local_rope) if rope is not None and rope.depends_on_length]
        long = [rope for rope in ropes if num_prompt > rope.original_max_position]
        if any(rope.scaling == "dynamic" for rope in long):
            return num_prompt
        return max((rope.original_max_position for rope in long), default=0)

    def has_experts(self, layer: int) -> bool:
        """Whether a layer's MLP is a mixture of experts."""
        return bool(self.num_experts) and layer not in self.dense_layers

    def mlp_size(self, layer: int) -> int:
        """The inner size of a layer's MLP, or of each of its experts."""
        return self.dense_intermediate_size if layer in self.dense_layers else self.intermediate_size

    def _check_sizes(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "max_position"):
            if getattr(self, name) < 1:
                raise FieldError(f"{{{name}}} must be at least 1, got {getattr(self, name)}")
        check_num_layers(self.num_layers)
        if self.max_position > _MAX_POSITION:
            raise FieldError(f"{{max_position}} must be at most {_MAX_POSITION}, got {self.max_position}")
        if not 0 <= self.rms_norm_eps < 1:
            raise FieldError(f"{{rms_norm_eps}} must be in [0, 1), got {self.rms_norm_eps}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise FieldError(
                f"{{sliding_window}} must be at least 1 token or absent, got {self.sliding_window}"
            )
        for name in ("query_pre_attn_scalar", "attention_softcap", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise FieldError(f"{{{name}}} must be positive or absent, got {value}")

    def _check_heads(self) -> None:
        if self.num_heads < 1 or self.num_kv_heads < 1:
            raise FieldError(
                f"{{num_heads}} and {{num_kv_heads}} must be at least 1, got {self.num_heads} and {self.num_kv_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise FieldError(
                f"{{num_heads}} ({self.num_heads}) must be a multiple of {{num_kv_heads}} ({self.num_kv_heads}): "
                "every KV head serves the same number of query heads"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise FieldError(
                f"{{head_dim}} must be even and at least 2 for rotary embedding, got {self.head_dim}"
            )
        self._check_divisors()

    def _check_divisors(self) -> None:
        rope = self.rope
        needed = {"divisors": bool(rope.divisors)}
        needed |= dict.fromkeys(("short_divisors", "long_divisors"), rope.scaling == "longrope")
        for name, is_needed in needed.items():
            count = len(getattr(rope, name))
            if is_needed and count != self.head_dim // 2:
                raise FieldError(
                    f"rope scaling has {count} {name.replace('_', ' ')}, expected one for each frequency: head_dim / 2 "
                    f"= {self.head_dim // 2}"
                )

    def _check_experts(self) -> None:
        if not 0 <= self.num_experts <= _MAX_EXPERTS:
            raise FieldError(f"{{num_experts}} must be between 0 and {_MAX_EXPERTS}, got {self.num_experts}")
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise FieldError(
                f"{{experts_per_token}} must be between 1 and {{num_experts}} ({self.num_experts}), "
                f"got {self.experts_per_token}"
            )
        if self.shared_intermediate_size < 0 or (self.dense_layers and self.dense_intermediate_size < 1):
            raise FieldError(
                "{shared_intermediate_size} must not be negative, and {dense_intermediate_size} must be at least 1 "
                f"where layers are dense, got {self.shared_intermediate_size} and {self.dense_intermediate_size}"
            )

    def _check_biases(self) -> None:
        if unknown := set(self.biases) - set(BIASABLE):
            raise FieldError(f"biases must be among {', '.join(BIASABLE)}, got {', '.join(sorted(unknown))}")
        if self.num_experts and {"gate", "up", "down"} & set(self.biases):
            raise FieldError("biases of experts are not supported; only those of a dense MLP are")


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of the model by its canonical name, with its shape. Matrices are (outputs, inputs)."""
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (config.vocab_size, config.hidden_size),
        "norm": (config.hidden_size,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head"] = (config.vocab_size, config.hidden_size)
    for i in range(config.num_layers):
        layer = _attention_shapes(config) | _mlp_shapes(config, i)
        layer |= dict.fromkeys(_norm_names(config), (config.hidden_size,))
        layer |= {f"{part}_bias": layer[part][:1] for part in config.biases}
        shapes.update({f"layers.{i}.{name}": shape for name, shape in layer.items()})
    return shapes


def _norm_names(config: ModelConfig) -> list[str]:
    """The norms beside a layer's two sublayers."""
    suffixes = {"before": ("norm",), "after": ("post_norm",), "around": ("norm", "post_norm")}[config.norms]
    return [f"{sublayer}_{suffix}" for sublayer in ("attention", "mlp") for suffix in suffixes]


def _attention_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden = config.hidden_size
    query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "q": (query_size, hidden),
        "k": (kv_size, hidden),
        "v": (kv_size, hidden),
        "o": (hidden, query_size),
    }
    if config.qk_norm:
        is_wide = config.qk_norm_over_heads
        shapes["q_norm"] = (query_size if is_wide else config.head_dim,)
        shapes["k_norm"] = (kv_size if is_wide else config.head_dim,)
    return shapes


def _mlp_shapes(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the layer's MLP, or of its experts."""
    hidden = config.hidden_size
    mlp = _gated_shapes(hidden, config.mlp_size(layer))
    if not config.has_experts(layer):
        return mlp
    shapes: dict[str, tuple[int, ...]] = {"router": (config.num_experts, hidden)}
    for e in range(config.num_experts):
        shapes |= {f"experts.{e}.{name}": shape for name, shape in mlp.items()}
    if config.shared_intermediate_size:
        shared = _gated_shapes(hidden, config.shared_intermediate_size)
        shapes |= {f"shared.{name}": shape for name, shape in shared.items()}
        shapes["shared_gate"] = (1, hidden)
    return shapes


def _gated_shapes(hidden: int, inter: int) -> dict[str, tuple[int, ...]]:
    return {"gate": (inter, hidden), "up": (inter, hidden), "down": (hidden, inter)}
