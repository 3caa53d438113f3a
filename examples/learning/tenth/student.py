"""A Llama of a tenth of the size of the model in the input ``source``, with that model's tokens.

Parameters: `hidden`, a part of the model's own hidden size, `intermediate`, `layers`, `heads`,
`kv_heads`. A token's vector is the model's own vector, folded: each of its `hidden` numbers is the
sum, with signs, of one number out of every block of that many, so that what is near in the model is
about as near here. All other matrices come from SHAKE-256 of the tensor's name. Standard library
only.
"""

import json
import math
import shutil
import struct
from array import array
from collections.abc import Mapping
from hashlib import shake_256
from pathlib import Path

EMBEDDING = "model.embed_tokens.weight"
COPIED = (
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
SIZES = ("hidden", "intermediate", "layers", "heads", "kv_heads")
OUT_OF_A_LAYER = ("down_proj", "o_proj")
"""What a layer adds begins small beside a token's vector."""

Shape = tuple[int, ...]


def run(inputs: Mapping[str, Path], out: Path, params: Mapping[str, str | int]) -> None:
    """Write the student's model folder to `out`."""
    source = inputs["source"]
    sizes = {name: int(params[name]) for name in SIZES}
    for name in COPIED:
        shutil.copyfile(source / name, out / name)
    config = json.loads((source / "config.json").read_text("utf-8"))
    text = json.dumps(config | changes(sizes), indent=2, sort_keys=True) + "\n"
    (out / "config.json").write_text(text, "utf-8")
    table = shapes(sizes, int(config["vocab_size"]))
    with (out / "model.safetensors").open("wb") as file:
        file.write(header(table))
        for name, shape in table.items():
            file.write(folded(source, shape) if name == EMBEDDING else made(name, shape))


def changes(sizes: Mapping[str, int]) -> dict[str, object]:
    """What is other in the student's configuration."""
    return {
        "dtype": "float32",
        "head_dim": sizes["hidden"] // sizes["heads"],
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["intermediate"],
        "num_attention_heads": sizes["heads"],
        "num_hidden_layers": sizes["layers"],
        "num_key_value_heads": sizes["kv_heads"],
    }


def shapes(sizes: Mapping[str, int], words: int) -> Mapping[str, Shape]:
    """Name to shape of every tensor, sorted; the head is the table of tokens."""
    hidden, wide = sizes["hidden"], sizes["intermediate"]
    keys = sizes["kv_heads"] * hidden // sizes["heads"]
    layer: dict[str, Shape] = {
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
    table: dict[str, Shape] = {EMBEDDING: (words, hidden), "model.norm.weight": (hidden,)}
    for index in range(sizes["layers"]):
        table |= {f"model.layers.{index}.{part}.weight": shape for part, shape in layer.items()}
    return dict(sorted(table.items()))


def header(table: Mapping[str, Shape]) -> bytes:
    """The beginning of a float32 safetensors file."""
    entries, at = {}, 0
    for name, shape in table.items():
        end = at + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text


def made(name: str, shape: Shape) -> bytes:
    """Ones for a norm; else uniform values that keep a signal's size, or leave a tenth of it."""
    count = math.prod(shape)
    if len(shape) == 1:
        return struct.pack(f"<{count}f", *[1.0] * count)
    bound = math.sqrt(3 / shape[1]) / (10 if any(part in name for part in OUT_OF_A_LAYER) else 1)
    draws = struct.unpack(f"<{count}H", shake_256(name.encode()).digest(2 * count))
    return struct.pack(f"<{count}f", *(bound * (draw - 32767.5) / 32768 for draw in draws))


def folded(source: Path, shape: Shape) -> bytes:
    """The source's vectors of `shape`'s number of tokens, folded to its width."""
    words, hidden = shape
    values, width = embedding(source / "model.safetensors", words)
    blocks = range(0, width, hidden)
    draws = shake_256(EMBEDDING.encode()).digest(width)
    scale = 1 / math.sqrt(len(blocks))
    signs = [scale if draw % 2 else -scale for draw in draws]
    out = bytearray()
    for word in range(words):
        row = [one * sign for one, sign in zip(at(values, word, width), signs, strict=True)]
        parts = (row[begin : begin + hidden] for begin in blocks)
        out += struct.pack(f"<{hidden}f", *map(sum, zip(*parts, strict=True)))
    return bytes(out)


def at(values: "array[float]", word: int, width: int) -> "array[float]":
    """The vector of a token."""
    return values[word * width : (word + 1) * width]


def embedding(path: Path, words: int) -> tuple["array[float]", int]:
    """The table of tokens of a safetensors file in bfloat16, and its width."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(size))[EMBEDDING]
        if entry["dtype"] != "BF16" or entry["shape"][0] != words:
            raise ValueError(f"not {words} tokens in BF16: {entry}")
        begin, end = entry["data_offsets"]
        file.seek(8 + size + begin)
        halves = file.read(end - begin)
    whole = bytearray(2 * len(halves))  # a bfloat16 is the upper half of a float32
    whole[2::4], whole[3::4] = halves[0::2], halves[1::2]
    return array("f", bytes(whole)), entry["shape"][1]
