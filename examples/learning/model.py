"""A Llama or a Qwen2 with weights made by a formula, of the size that the recipe asks for.

Parameters: `family`, `hidden`, `intermediate`, `layers`, `heads`, `kv_heads`. The tokenizer is
byte-level without merges, with a ChatML template. Weights come from SHAKE-256 of the tensor's name:
nothing to download and nothing to trust. Standard library only.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from hashlib import shake_256
from pathlib import Path

Json = dict[str, object]
Params = Mapping[str, str | int]

SIZES = {"hidden": 128, "intermediate": 352, "layers": 3, "heads": 4, "kv_heads": 2}
WINDOW = 512
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
WORDS = len(SPECIALS) + 256
IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def run(_inputs: Mapping[str, Path], out: Path, params: Params) -> None:
    """Write the model folder to `out`."""
    sizes = {name: int(params.get(name, size)) for name, size in SIZES.items()}
    family = str(params.get("family", "llama"))
    write(out / "config.json", config(family, sizes) | IDS)
    write(out / "generation_config.json", IDS)
    write(out / "tokenizer.json", tokenizer())
    write(out / "tokenizer_config.json", tokenizer_config())
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    with (out / "model.safetensors").open("wb") as file:
        file.writelines(safetensors(shapes(sizes, biased=family == "qwen2")))


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


FAMILIES: Mapping[str, Json] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "mlp_bias": False,
        "model_type": "llama",
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": False,
    },
}
"""What is peculiar to each; Qwen2's queries, keys and values have biases."""


def config(family: str, sizes: Mapping[str, int]) -> Json:
    return FAMILIES[family] | {
        "attention_dropout": 0.0,
        "dtype": "float32",
        "head_dim": sizes["hidden"] // sizes["heads"],
        "hidden_act": "silu",
        "hidden_size": sizes["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": sizes["intermediate"],
        "max_position_embeddings": WINDOW,
        "num_attention_heads": sizes["heads"],
        "num_hidden_layers": sizes["layers"],
        "num_key_value_heads": sizes["kv_heads"],
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": WORDS,
    }


def shapes(sizes: Mapping[str, int], *, biased: bool) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor, sorted."""
    hidden, wide = sizes["hidden"], sizes["intermediate"]
    keys = sizes["kv_heads"] * hidden // sizes["heads"]
    layer = {
        "input_layernorm": (hidden,),
        "mlp.down_proj": (hidden, wide),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "post_attention_layernorm": (hidden,),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.v_proj": (keys, hidden),
    }
    table = {"model.embed_tokens.weight": (WORDS, hidden), "model.norm.weight": (hidden,)}
    for index in range(sizes["layers"]):
        table |= {f"model.layers.{index}.{part}.weight": shape for part, shape in layer.items()}
        for part in ("q_proj", "k_proj", "v_proj") if biased else ():
            rows = layer[f"self_attn.{part}"][:1]
            table[f"model.layers.{index}.self_attn.{part}.bias"] = rows
    return dict(sorted(table.items()))


def safetensors(table: Mapping[str, tuple[int, ...]]) -> Iterator[bytes]:
    """The parts of a float32 safetensors file with the formula's weights."""
    header, at = {}, 0
    for name, shape in table.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    yield struct.pack("<Q", len(text)) + text
    for name, shape in table.items():
        yield weights(name, shape)


def weights(name: str, shape: tuple[int, ...]) -> bytes:
    """Ones for a norm, zeros for a bias; else uniform values that keep a signal's variance."""
    count = math.prod(shape)
    if len(shape) == 1:
        return struct.pack(f"<{count}f", *[float(not name.endswith(".bias"))] * count)
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


def tokenizer() -> Json:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = False
    plain = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": text, "special": True, **plain}
            for index, text in enumerate(SPECIALS)
        ],
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


def tokenizer_config() -> Json:
    names = {name.removesuffix("_id"): SPECIALS[index] for name, index in IDS.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": WINDOW,
        **names,
    }
