"""Tiny models and rows from fixed formulas; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny"


def example(path: Path) -> ModuleType:
    """The example script `path` as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_llama(folder: Path, *, window: int = 512) -> Path:
    """`folder`, made, with the tiny example's model: 90,688 float32 parameters, 365 kB.

    Args:
        folder: Where to make it.
        window: Most tokens that it reads; no weight depends on it.
    """
    folder.mkdir(parents=True)
    example(TINY / "model.py").run({}, folder, {})
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = window
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def tiny_rows(folder: Path) -> Path:
    """The tiny example's rows.jsonl in `folder`, made: 128 rows, columns text and ward."""
    folder.mkdir(parents=True)
    example(TINY / "rows.py").run({}, folder, {})
    return folder / "rows.jsonl"


def tiny_gguf(path: Path, *, architecture: str = "llama", kind: str = "F32", **changes) -> dict:
    """Write a GGUF file of a tiny model; its float32 weights by their Hugging Face names.

    Args:
        path: The file to make.
        architecture: ``llama`` or ``qwen2``.
        kind: ``F32``, ``F16``, ``BF16``, ``Q8_0`` or ``Q4_1``: how the matrices are stored.
        **changes: Metadata to replace, dots in the key as ``__``; None leaves the entry out.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    model = example(TINY / "model.py")
    weights = {
        name: np.frombuffer(model.weights(name, shape), np.float32).reshape(shape)
        for name, shape in _gguf_shapes(model, architecture).items()
    }
    writer = GGUFWriter(path, architecture)
    for key, (add, value) in _gguf_values(model, architecture, changes).items():
        getattr(writer, add)(key, value)
    stored = GGMLQuantizationType[kind]
    for name, values in weights.items():
        rows = _interleaved(name, values) if architecture == "llama" else values
        matrix = rows.ndim > 1
        data = quants.quantize(rows, stored) if matrix else rows
        writer.add_tensor(_gguf_name(name), data, raw_dtype=stored if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _gguf_shapes(model: ModuleType, architecture: str) -> dict:
    table = dict(model.shapes())
    table["model.embed_tokens.weight"] = (model.VOCABULARY + 1, model.HIDDEN)  # one merged token
    if architecture == "qwen2":
        for layer in range(model.LAYERS):
            for letter in "qkv":
                name = f"model.layers.{layer}.self_attn.{letter}_proj"
                table[f"{name}.bias"] = table[f"{name}.weight"][:1]
    return table


def _gguf_values(model: ModuleType, architecture: str, changes: dict) -> dict:
    base, tokens = architecture, [*model.SPECIALS, *model.byte_symbols(), "ab"]
    values = {
        f"{base}.block_count": ("add_uint32", model.LAYERS),
        f"{base}.context_length": ("add_uint32", 512),
        f"{base}.embedding_length": ("add_uint32", model.HIDDEN),
        f"{base}.feed_forward_length": ("add_uint32", model.INTERMEDIATE),
        f"{base}.attention.head_count": ("add_uint32", model.HEADS),
        f"{base}.attention.head_count_kv": ("add_uint32", model.KV_HEADS),
        f"{base}.attention.layer_norm_rms_epsilon": ("add_float32", 1e-5),
        f"{base}.rope.freq_base": ("add_float32", 10000.0),
        "tokenizer.ggml.model": ("add_string", "gpt2"),
        "tokenizer.ggml.pre": ("add_string", "smollm" if base == "llama" else "qwen2"),
        "tokenizer.ggml.tokens": ("add_array", tokens),
        "tokenizer.ggml.token_type": ("add_array", [3] * 4 + [1] * (len(tokens) - 4)),
        "tokenizer.ggml.merges": ("add_array", ["a b"]),
        "tokenizer.ggml.bos_token_id": ("add_uint32", model.BOS),
        "tokenizer.ggml.eos_token_id": ("add_uint32", model.EOS),
        "tokenizer.ggml.padding_token_id": ("add_uint32", model.PAD),
        "tokenizer.chat_template": ("add_string", model.CHAT_TEMPLATE),
    }
    for key, value in changes.items():
        name = key.replace("__", ".")
        add = values.get(name, ("add_string", None))[0]
        values[name] = (add, value)
    return {name: pair for name, pair in values.items() if pair[1] is not None}


_GGUF_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers": "blk",
}


def _gguf_name(name: str) -> str:
    for theirs, short in _GGUF_PARTS.items():
        name = name.replace(theirs, short)
    return name


def _interleaved(name: str, values):
    """Query and key rows as llama.cpp stores them: the first of each half, the second, …."""
    heads = {"q_proj.weight": 4, "k_proj.weight": 2}.get(name.partition("self_attn.")[2])
    if heads is None:
        return values
    size = values.shape[0] // heads
    order = [
        head * size + half * size // 2 + pair
        for head in range(heads)
        for pair in range(size // 2)
        for half in range(2)
    ]
    return values[order]
