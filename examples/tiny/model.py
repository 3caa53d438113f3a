"""A tiny Llama with random weights, made by a formula: the base of the tiny example.

Two layers, hidden size 64, a byte-level tokenizer without merges and a ChatML template: 90,688
parameters, written as a plain Hugging Face folder. Weights come from SHAKE-256 of the tensor's
name, so there is nothing to download and nothing to trust. Standard library only.
"""

import json
import math
import struct
from collections.abc import Mapping
from hashlib import shake_256
from pathlib import Path

Shapes = Mapping[str, tuple[int, ...]]

HIDDEN = 64
INTERMEDIATE = 128
LAYERS = 2
HEADS = 4
KV_HEADS = 2
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
BOS, EOS, PAD = 0, 2, 3
VOCABULARY = len(SPECIALS) + 256
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def run(_inputs: Mapping[str, Path], out: Path, params: Mapping[str, str | int]) -> None:
    """Write the model folder to `out`; with `biases` = 1 the attention has some, all 0."""
    biases = params.get("biases") == 1
    files = {
        "config.json": config() | {"attention_bias": biases},
        "generation_config.json": {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD},
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": tokenizer_config(),
    }
    for name, value in files.items():
        (out / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    (out / "model.safetensors").write_bytes(safetensors(shapes(biases=biases)))


def config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "dtype": "float32",
        "eos_token_id": EOS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "pad_token_id": PAD,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def shapes(*, biases: bool = False) -> Shapes:
    """Name to shape of every tensor of the model."""
    keys = KV_HEADS * HIDDEN // HEADS
    layer = {
        "input_layernorm": (HIDDEN,),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
    }
    table = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for index in range(LAYERS):
        table |= {f"model.layers.{index}.{part}.weight": shape for part, shape in layer.items()}
        for part in ("q_proj", "k_proj", "v_proj", "o_proj") if biases else ():
            rows = layer[f"self_attn.{part}"][0]
            table[f"model.layers.{index}.self_attn.{part}.bias"] = (rows,)
    return dict(sorted(table.items()))


def safetensors(table: Shapes) -> bytes:
    """The bytes of a float32 safetensors file with the formula's weights."""
    header, data, at = {}, [], 0
    for name, shape in table.items():
        data.append(weights(name, shape))
        header[name] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [at, at + len(data[-1])],
        }
        at += len(data[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text + b"".join(data)


def weights(name: str, shape: tuple[int, ...]) -> bytes:
    """Ones for a norm, zeros for a bias; else uniform values that keep a signal's variance."""
    count = math.prod(shape)
    if len(shape) == 1:
        return struct.pack(f"<{count}f", *[0.0 if name.endswith(".bias") else 1.0] * count)
    bound = math.sqrt(3 / shape[1])
    draws = struct.unpack(f"<{count}H", shake_256(name.encode()).digest(2 * count))
    return struct.pack(f"<{count}f", *(bound * (draw - 32767.5) / 32768 for draw in draws))


def byte_symbols() -> list[str]:
    """The printable stand-in of each byte, as byte-level tokenizers write them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(256 + len(symbols) - len(printable))
    return [symbols[byte] for byte in range(256)]


def tokenizer() -> dict[str, object]:
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    added = [
        {
            "id": index,
            "content": text,
            "special": True,
            "normalized": False,
            "lstrip": False,
            "rstrip": False,
            "single_word": False,
        }
        for index, text in enumerate(SPECIALS)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate((*SPECIALS, *byte_symbols()))},
            "merges": [],
        },
    }


def tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[BOS],
        "eos_token": SPECIALS[EOS],
        "pad_token": SPECIALS[PAD],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
