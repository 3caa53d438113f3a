"""Quantised models, made layer by layer from a plain folder with the project's own rounding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kolm_build.core.quantisation import INT8, scheme_of
from kolm_build.core.quantisation import format_of as stored_as
from kolm_build.core.quantisation_config import KEY, grouped, to_config
from kolm_build.numerics.quantised import global_scale_of, nearest, pack, scales, values

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def quantised(source: Path, folder: Path, scheme: str, *, embeddings: str = "keep") -> Path:
    """`folder`, made: the model at `source` with its linear layers by `scheme`, to nearest.

    Args:
        source: A Llama's folder whose head is its embedding.
        folder: Where to make it.
        scheme: A name of `SCHEMES`; static activations get the scale of a magnitude of 4.
        embeddings: ``keep``, or ``int8``.
    """
    tensors, layers, dequantised = load_file(source / "model.safetensors"), [], {}
    for name in [one for one in tensors if one.endswith("_proj.weight")]:
        _round(tensors, layers, dequantised, name.removesuffix(".weight"), scheme)
    if embeddings == "int8":
        _round_embedding(tensors, layers, dequantised)
    _write(source, folder, tensors, layers)
    _write(source, folder.with_name(folder.name + "-plain"), _plain(source, dequantised), None)
    return folder


def plain_of(folder: Path) -> Path:
    """The folder that `quantised` made beside `folder`: the same numbers as float32."""
    return folder.with_name(folder.name + "-plain")


def _round(tensors, layers, dequantised, layer, scheme):
    weight = tensors.pop(f"{layer}.weight")
    known = scheme_of(scheme)
    grid = known.grid(weight.shape[1])
    form = stored_as(grid, known.activations)
    matrix = nearest(weight.float(), scales(weight.float(), grid, dtype=weight.dtype))
    dequantised[f"{layer}.weight"] = values(matrix)
    parts = pack(matrix, form) | _inputs(known, weight.dtype)
    tensors |= {f"{layer}.{part}": one.contiguous() for part, one in parts.items()}
    layers.append((layer, grid, form, known.activations))


def _inputs(scheme, dtype):
    if scheme.activations != "static":
        return {}
    most = torch.tensor([4.0])
    if scheme.weights.kind == "nvfp4":
        return {"input_global_scale": global_scale_of([most])}
    return {"input_scale": (most / 127.5).to(dtype)}


def _round_embedding(tensors, layers, dequantised):
    weight = tensors.pop(f"{EMBEDDING}.weight")
    matrix = nearest(weight.float(), scales(weight.float(), INT8, dtype=weight.dtype))
    dequantised[f"{EMBEDDING}.weight"] = values(matrix)
    parts = pack(matrix, "int-quantized")
    tensors |= {f"{EMBEDDING}.{part}": one for part, one in parts.items()}
    tensors[f"{HEAD}.weight_scale"] = parts["weight_scale"].clone()
    layers += [(name, INT8, "int-quantized", "") for name in (EMBEDDING, HEAD)]


def _plain(source, dequantised):
    tensors = load_file(source / "model.safetensors")
    return {name: dequantised.get(name, one).float() for name, one in tensors.items()}


def _write(source, folder, tensors, layers):
    shutil.copytree(source, folder)
    save_file(dict(sorted(tensors.items())), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if layers is None:
        config["dtype"] = "float32"
    else:
        config[KEY] = to_config(grouped(layers))
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
