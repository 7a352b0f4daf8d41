"""Small random Hugging Face model directories of every family, and small random GGUF files, for tests.

Written by transformers itself, so that it is the oracle for what they hold. Each directory has a real tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from support.stored_cases import random_blocks
from tokenweave.kernels import FORMATS

if TYPE_CHECKING:
    import gguf  # where GGUF files are written: directories are written without it, as `make gpu` does

VOCAB_SIZE = 331  # a prime: no number of ranks divides it
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_BASE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # far from uniform logits
}


_EXPERTS = {"moe_intermediate_size": 48, "num_experts": 5, "num_experts_per_tok": 2}


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **parameters}}


_TWO_ROPES = {
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}

# name -> (model_type, changes to _BASE)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama_untied": ("llama", {"tie_word_embeddings": False}),
    "llama_9_heads": ("llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 144}),
    "llama_6_heads": ("llama", {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96}),
    "llama_5_heads": (
        "llama",
        {"num_attention_heads": 5, "num_key_value_heads": 1, "hidden_size": 160, "head_dim": 32},
    ),
    "llama3_rope": (
        "llama",
        _rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama_linear_rope": ("llama", _rope("linear", factor=4.0)),
    "llama_yarn_rope": ("llama", _rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral_window": ("mistral", {"sliding_window": 24}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3_biases": ("qwen3", {"head_dim": 32, "attention_bias": True}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen2_mixed_windows": (
        "qwen2",
        {"sliding_window": 24, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "phi3_longrope": (
        "phi3",
        {
            "pad_token_id": 0,
            "sliding_window": 24,
            "original_max_position_embeddings": 32,
            **_rope(
                "longrope",
                short_factor=[1.0 + 0.1 * j for j in range(8)],
                long_factor=[1.0 + j for j in range(8)],
            ),
        },
    ),
    "qwen2_moe": ("qwen2_moe", {**_EXPERTS, "shared_expert_intermediate_size": 80}),
    "qwen3_moe": (
        "qwen3_moe",
        {**_EXPERTS, "norm_topk_prob": True, "head_dim": 32, "num_hidden_layers": 3, "mlp_only_layers": [1]},
    ),
    "olmo2": ("olmo2", {}),
    "gemma2": (
        "gemma2",
        {
            "query_pre_attn_scalar": 24,
            "sliding_window": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 24, "sliding_window": 24, **_TWO_ROPES}),
}


def make_model(
    directory: Path, family: str = "llama", *, seed: int = 0, max_shard_size: str = "1GB", **changes: Any
) -> Path:
    """Writes a random float32 model of `family` (a key of FAMILIES) with a tokenizer; gives the directory.

    `changes` override the configuration, by transformers' names. A small `max_shard_size` ("20KB") makes many files.
    """
    model = build(family, seed=seed, **changes)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    write_tokenizer(directory)
    return directory


def build(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """The transformers model itself, in eval mode, with biases and norms that are not at their trivial start."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings = FAMILIES[family]
    values = {**_BASE, **settings, **changes}
    if model_type == "qwen2":
        values.pop("head_dim")  # Qwen2's is always hidden_size / num_heads
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (0.0 if name.endswith("bias") else 1.0))
    return model


def write_tokenizer(directory: Path) -> None:
    """A byte-level BPE tokenizer, trained on a few sentences, with a chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        bos_token=_SPECIAL[0],
        eos_token=_SPECIAL[2],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(directory)


@cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    text: str = tokenizer.to_str()
    return text


_CORPUS = [
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "Overlap every byte moved with compute: while one split computes, the other one communicates.",
    "A token, a block, a layer, a rank; there are 256 bytes and 16 tokens in a block.",
    "def main(argument):\n    return argument + 1\n",
]


def make_gguf(
    path: Path,
    quantization: str = "Q8_0",
    *,
    family: str = "llama",
    seed: int = 0,
    biases: Sequence[str] = (),
    extra: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    max_tensors: int = 0,
    formats: Mapping[str, str] | None = None,
    vocab: int = VOCAB_SIZE,
) -> dict[str, torch.Tensor]:
    """Writes a random GGUF model; gives its weights by canonical name, as they are after quantisation.

    `family` is "llama", "qwen2", "qwen3" or "mixtral" (as llama.cpp has it: llama with experts). `biases` are the
    matrices that get one, `extra` vectors to add (name: length), `settings` metadata to add, by whole keys. With
    `max_tensors` it is split: `model.gguf` becomes model-00001-of-00003.gguf and so on. `formats` are the quantisations
    of some parts ("v": "Q6_K"), where they have another. `vocab` may be more than the tokenizer has.
    """
    import gguf

    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama" if family == "mixtral" else family, split_max_tensors=max_tensors)
    hidden, inter, heads, kv_heads, d = 256, 512, 8, 2, 32
    experts = 3 if family == "mixtral" else 0
    _write_gguf_settings(writer, hidden, inter, heads, kv_heads, d, vocab, experts)
    write_gguf_vocabulary(writer)
    _write_gguf_values(writer, settings or {})
    expected = {}

    def add(
        name: str, tensor: str, *shape: int, heads: int = 0, plain: bool = False, size: float = 1.0
    ) -> None:
        values = random.standard_normal(shape).astype(np.float32) * np.float32(size)
        own = gguf.GGMLQuantizationType[(formats or {}).get(name.rpartition(".")[2], quantization)]
        use = gguf.GGMLQuantizationType.F32 if plain or len(shape) == 1 else own
        stored = _quantised(values, use)
        writer.add_tensor(tensor, stored, raw_dtype=use)
        kept = torch.from_numpy(gguf.quants.dequantize(stored, use).copy())
        if heads and family in ("llama", "mixtral"):
            kept = kept.reshape(heads, d // 2, 2, -1).transpose(1, 2).reshape(kept.shape)
        expected[name] = kept

    add("embed", "token_embd.weight", vocab, hidden)
    add("norm", "output_norm.weight", hidden)
    add("layers.0.attention_norm", "blk.0.attn_norm.weight", hidden)
    add("layers.0.mlp_norm", "blk.0.ffn_norm.weight", hidden)
    add("layers.0.q", "blk.0.attn_q.weight", heads * d, hidden, heads=heads)
    add("layers.0.k", "blk.0.attn_k.weight", kv_heads * d, hidden, heads=kv_heads)
    add("layers.0.v", "blk.0.attn_v.weight", kv_heads * d, hidden)
    add("layers.0.o", "blk.0.attn_output.weight", hidden, heads * d)
    rows = {
        "q": heads * d,
        "k": kv_heads * d,
        "v": kv_heads * d,
        "o": hidden,
        "gate": inter,
        "up": inter,
        "down": hidden,
    }
    bias_sizes = {"o": 30.0, "down": 500.0}  # of the order of the sums that they are added to
    for part in ("q", "k", "v") if family == "qwen2" else biases:
        tensor = "attn_output" if part == "o" else f"attn_{part}" if part in "qkv" else f"ffn_{part}"
        permuted = {"q": heads, "k": kv_heads}.get(part, 0)
        add(
            f"layers.0.{part}_bias",
            f"blk.0.{tensor}.bias",
            rows[part],
            heads=permuted,
            size=bias_sizes.get(part, 1.0),
        )
    for tensor, size in (extra or {}).items():
        writer.add_tensor(tensor, np.ones(size, dtype=np.float32))
    if family == "qwen3":
        add("layers.0.q_norm", "blk.0.attn_q_norm.weight", d)
        add("layers.0.k_norm", "blk.0.attn_k_norm.weight", d)
    sizes = {"gate": (inter, hidden), "up": (inter, hidden), "down": (hidden, inter)}
    if experts:
        add("layers.0.router", "blk.0.ffn_gate_inp.weight", experts, hidden, plain=True)
        for part, size in sizes.items():
            add(part, f"blk.0.ffn_{part}_exps.weight", experts, *size)
            stacked = expected.pop(part)
            expected |= {f"layers.0.experts.{e}.{part}": stacked[e] for e in range(experts)}
    else:
        for part, size in sizes.items():
            add(f"layers.0.{part}", f"blk.0.ffn_{part}.weight", *size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _quantised(values: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """The values in a format; random blocks of about their size where gguf has no quantisation for it."""
    import gguf

    form = FORMATS.get(kind.name.lower())
    if form is None or form.block_values < 256:
        quantised: np.ndarray[Any, Any] = gguf.quants.quantize(values, kind)
        return quantised
    rows, columns = values.size // values.shape[-1], values.shape[-1]
    blocks = random_blocks(rows, form, rows, columns // form.block_values).numpy()
    return blocks.reshape(*values.shape[:-1], -1)


def _write_gguf_settings(
    writer: gguf.GGUFWriter,
    hidden: int,
    inter: int,
    heads: int,
    kv_heads: int,
    d: int,
    vocab: int,
    experts: int,
) -> None:
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inter)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(d)
    writer.add_value_length(d)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(vocab)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)


def _write_gguf_values(writer: gguf.GGUFWriter, values: Mapping[str, Any]) -> None:
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in values.items():
        adders.get(type(value), writer.add_array)(key, value)


def write_gguf_vocabulary(writer: gguf.GGUFWriter) -> None:
    """The same tokenizer as `write_tokenizer` gives a directory."""
    model = json.loads(_tokenizer_json())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_token_types([3] * len(_SPECIAL) + [1] * (len(model["vocab"]) - len(_SPECIAL)))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
