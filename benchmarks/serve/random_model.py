"""Random models of real sizes: a Llama with random weights, as a Hugging Face directory and as a GGUF file.

A model of 135M parameters flatters whoever has little overhead; the speed of a larger one does not depend on what its
weights say. Both forms hold the same values: what GGUF keeps in blocks is rounded from what the directory holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from interlace.errors import BenchError

BYTE_TOKENS = 256
MERGE = ("t", "h")  # the one pair that is joined: llama.cpp refuses a vocabulary without any
BOS, EOS = "<|begin|>", "<|end|>"
CHAT_TEMPLATE = "{% for message in messages %}" + BOS + "{{ message['content'] }}{% endfor %}"
STD = 0.02  # as Llama initialises
SEED = 0
FILE = "model.safetensors"
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a Llama; the embedding is its head, too."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    max_position: int = 16384

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def matrices(self, layer: int) -> dict[str, tuple[tuple[int, int], str]]:
        """Shapes of a layer's matrices by their names in safetensors, each with its name in GGUF."""
        hidden, inter = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        sizes = {
            "self_attn.q_proj": ((q, hidden), "attn_q"),
            "self_attn.k_proj": ((kv, hidden), "attn_k"),
            "self_attn.v_proj": ((kv, hidden), "attn_v"),
            "self_attn.o_proj": ((hidden, q), "attn_output"),
            "mlp.gate_proj": ((inter, hidden), "ffn_gate"),
            "mlp.up_proj": ((inter, hidden), "ffn_up"),
            "mlp.down_proj": ((hidden, inter), "ffn_down"),
        }
        return {
            f"model.layers.{layer}.{name}.weight": (size, f"blk.{layer}.{other}.weight")
            for name, (size, other) in sizes.items()
        }

    def norms(self, layer: int) -> dict[str, str]:
        """Names of a layer's norms in safetensors, each with its name in GGUF."""
        names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
        return {f"model.layers.{layer}.{a}.weight": f"blk.{layer}.{b}.weight" for a, b in names.items()}


SHAPES = {
    "llama-1b": LlamaShape(2048, 16, 32, 8, 8192, 128_256),
    "llama-tiny": LlamaShape(128, 2, 4, 2, 256, 512, max_position=1024),  # to see that everything works
}


def write_model(
    shape: LlamaShape, directory: Path, quantization: str | None, progress: Progress
) -> list[Path]:
    """Writes `directory`/model.safetensors in bfloat16, and with a `quantization` ("Q4_0") `directory`/gguf too.

    Raises: BenchError for a directory that holds something, or a quantisation that GGUF's writer does not know.
    """
    if directory.exists() and any(directory.iterdir()):
        raise BenchError(f"{directory} is not empty; name a new directory")
    kind = _format_of(quantization) if quantization is not None else None
    directory.mkdir(parents=True, exist_ok=True)
    tensors = dict(_tensors(shape))
    progress(0.3, FILE)
    save_file({name: values for name, (values, _) in tensors.items()}, directory / FILE, {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(_config(shape), indent=2))
    _write_tokenizer(shape, directory)
    written = [directory / FILE]
    if kind is not None:
        path = directory / "gguf" / f"model-{kind.name.lower()}.gguf"
        path.parent.mkdir()
        _write_gguf(shape, tensors, path, kind, progress)
        written.append(path)
    return written


def _format_of(quantization: str) -> Any:
    """The format called so; one that gguf can write."""
    import gguf

    try:
        kind = gguf.GGMLQuantizationType[quantization.upper()]
        gguf.quants.quantize(np.zeros((1, 256), dtype=np.float32), kind)
    except (KeyError, NotImplementedError) as error:
        raise BenchError(
            f"got the quantisation {quantization!r}; expected one that gguf writes, such as Q8_0 or Q4_0"
        ) from error
    return kind


def _tensors(shape: LlamaShape) -> Iterator[tuple[str, tuple[Tensor, str]]]:
    """Every tensor by its name in safetensors, with its name in GGUF."""
    generator = torch.Generator().manual_seed(SEED)

    def random(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16).normal_(0, STD, generator=generator)

    yield "model.embed_tokens.weight", (random(shape.vocab_size, shape.hidden_size), "token_embd.weight")
    for layer in range(shape.num_layers):
        for name, (size, other) in shape.matrices(layer).items():
            yield name, (random(*size), other)
        for name, other in shape.norms(layer).items():
            yield name, (torch.ones(shape.hidden_size, dtype=torch.bfloat16), other)
    yield "model.norm.weight", (torch.ones(shape.hidden_size, dtype=torch.bfloat16), "output_norm.weight")


def _config(shape: LlamaShape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": BYTE_TOKENS,
        "eos_token_id": BYTE_TOKENS + 1,
    }


def _vocabulary(shape: LlamaShape) -> list[str]:
    """A token for each byte, two that begin and end a text, the merged one, and fillers that no text contains."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = shape.vocab_size - BYTE_TOKENS - 3
    return [*alphabet, BOS, EOS, "".join(MERGE), *(f"<|filler {number}|>" for number in range(fillers))]


def _write_tokenizer(shape: LlamaShape, directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = _vocabulary(shape)
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, [MERGE]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(BOS, special=True), AddedToken(EOS, special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _write_gguf(
    shape: LlamaShape,
    tensors: dict[str, tuple[Tensor, str]],
    path: Path,
    kind: Any,
    progress: Progress,
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    _add_settings(writer, shape)
    for number, (name, (values, other)) in enumerate(tensors.items()):
        progress(0.4 + 0.5 * number / len(tensors), other)
        floats = values.float().numpy()
        if floats.ndim == 1:
            writer.add_tensor(other, floats)
            continue
        if ".q_proj." in name or ".k_proj." in name:
            floats = _interleaved(floats, shape.head_dim)
        writer.add_tensor(other, gguf.quants.quantize(floats, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(values: Any, head_dim: int) -> Any:
    """Rows j and d/2 + j of each head side by side, as llama.cpp rotates them."""
    heads = values.reshape(-1, 2, head_dim // 2, values.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)


def _add_settings(writer: Any, shape: LlamaShape) -> None:
    writer.add_context_length(shape.max_position)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab_size)
    tokens = _vocabulary(shape)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(MERGE)])
    is_special = {BOS, EOS}
    writer.add_token_types([3 if token in is_special else 1 for token in tokens])
    writer.add_bos_token_id(BYTE_TOKENS)
    writer.add_eos_token_id(BYTE_TOKENS + 1)
    writer.add_chat_template(CHAT_TEMPLATE)
