"""GPTQ here and in llm-compressor: one model, one calibration text, one perplexity.

    python tools/quantisation_peer.py MODEL --peer PYTHON [--methods rtn gptq]

llm-compressor cannot share this environment (docs/dependencies.md), so PYTHON is an interpreter of
another one: `python -m venv peer && peer/bin/pip install llmcompressor==0.14.0.1`. Both round the
linear layers of MODEL to w4a16 in the same groups (QUANT-2), calibrated with the same 16 pieces of
256 tokens of Python's reference text. The numbers that their weights stand for are then put into
one plain model in float32, whose perplexity is that of 36 pieces of 384 other tokens.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("rtn", "gptq")
GROUPS = (128, 64, 32)
PIECES, PIECE_TOKENS = 16, 256
WINDOWS, WINDOW_TOKENS = 36, 384
CHARACTERS = 60_000
CALIBRATION_START = 200_000
WEIGHTS = "rounded.safetensors"


def pieces(model: Path, start: int, count: int, length: int) -> list[tuple[int, ...]]:
    """`count` pieces of `length` tokens, of Python's reference text from character `start` on."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer

    text = "\n\n".join(topics[name] for name in sorted(topics))[start : start + CHARACTERS]
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [tuple(ids[at : at + length]) for at in range(0, count * length, length)]


def calibration(model: Path) -> list[tuple[int, ...]]:
    """What both are calibrated with."""
    return pieces(model, CALIBRATION_START, PIECES, PIECE_TOKENS)


def rounded_here(model: Path, method: str) -> dict[str, Tensor]:
    """What this project's `method` makes of the weights, by the names of the parameters."""
    import torch

    from kolm_build.core.quantisation import scheme_of
    from kolm_build.numerics import guard
    from kolm_build.numerics.quantised import values
    from kolm_build.runtime.loading import load
    from kolm_build.steps.quantisation import gptq, observing
    from kolm_build.steps.quantisation.rounding import Grids

    scheme = scheme_of("w4a16")
    with guard.activate():
        network = load(model).network
        grids = Grids(
            by_layer={
                name: scheme.grid(layer.in_features)
                for name, layer in network.named_modules()
                if isinstance(layer, torch.nn.Linear) and name != "lm_head"
            },
            scale_dtype=torch.bfloat16,
            model_dtype=torch.bfloat16,
        )
        rows = calibration(model)
        if method == "gptq":
            made = gptq.quantise(network, rows, grids, gptq.Settings())
        else:
            made = observing.quantise(network, rows, grids)
    return {f"{name}.weight": values(one) for name, one in made.quantised.items()}


def rounded_there(model: Path, method: str) -> dict[str, Tensor]:
    """The same by llm-compressor, which this interpreter has."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    groups = {
        f"groups of {group}": QuantizationScheme(
            targets=[f"re:{name}$" for name in names],
            weights=QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=group),
        )
        for group, names in _by_group(network).items()
    }
    rows = [list(row) for row in calibration(model)]
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
    if method == "gptq":
        change = GPTQModifier(config_groups=groups, ignore=["lm_head"], actorder="static")
    else:
        change, data = QuantizationModifier(config_groups=groups, ignore=["lm_head"]), None
    oneshot(model=network, dataset=data, recipe=[change], max_seq_length=PIECE_TOKENS)
    return {
        f"{name}.weight": fake_quantize(
            layer.weight.data,
            layer.weight_scale,
            layer.weight_zero_point,
            layer.quantization_scheme.weights,
        )
        for name, layer in network.named_modules()
        if hasattr(layer, "weight_scale")
    }


def _by_group(network: Any) -> dict[int, list[str]]:
    """The names of the linear layers, as patterns, by the group that divides their columns."""
    import re

    import torch

    found: dict[int, list[str]] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            group = next(group for group in GROUPS if layer.in_features % group == 0)
            found.setdefault(group, []).append(re.escape(name))
    return found


def perplexity(model: Path, rounded: Mapping[str, Tensor]) -> float:
    """The perplexity of `model`, in float32, with the weights `rounded` in their places."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    parameters = dict(network.named_parameters())
    losses: list[float] = []
    with torch.no_grad():
        for name, weight in rounded.items():
            parameters[name].copy_(weight)
        for row in pieces(model, 0, WINDOWS, WINDOW_TOKENS):
            piece = torch.tensor([row])
            logits = network(input_ids=piece, use_cache=False).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="none")
            losses += loss.tolist()
    return math.exp(math.fsum(losses) / len(losses))


def apart(python: str, options: argparse.Namespace, who: str, method: str) -> tuple[Path, float]:
    """Round in a process of its own: the file of weights, and the processor time in seconds."""
    folder = Path(tempfile.mkdtemp(dir=options.place))
    before = os.times()
    arguments = [str(options.model), "--role", who, "--methods", method, "--place", str(folder)]
    subprocess.run([python, "-W", "ignore", __file__, *arguments], check=True)
    after = os.times()
    used = after.children_user + after.children_system
    return folder / WEIGHTS, used - before.children_user - before.children_system


def compare(options: argparse.Namespace) -> int:
    """Print a row for each method and program; 1 where our GPTQ is the worse one."""
    from safetensors.torch import load_file

    print(f"full precision: perplexity {perplexity(options.model, {}):.3f}", flush=True)
    found: dict[str, float] = {}
    for method in options.methods:
        for who, python in (("kolm", sys.executable), ("llm-compressor", options.peer)):
            file, cpu_s = apart(python, options, who, method)
            found[f"{who} {method}"] = perplexity(options.model, load_file(file))
            print(f"{who} {method}: perplexity {found[f'{who} {method}']:.3f}, {cpu_s:.0f} s CPU")
    ratio = found.get("kolm gptq", 0.0) / found.get("llm-compressor gptq", 1.0)
    return int(ratio > 1)


def write(options: argparse.Namespace) -> int:
    """Round in this process and write what the weights stand for."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    rounded = (rounded_here if options.role == "kolm" else rounded_there)(
        options.model, options.methods[0]
    )
    values = {name: weight.float().contiguous() for name, weight in rounded.items()}
    save_file(values, options.place / WEIGHTS)
    return 0


def main() -> int:
    """Run it; 0 where nothing is worse."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder in full precision")
    parser.add_argument("--peer", help="a Python that has llm-compressor")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--role", choices=("kolm", "llm-compressor"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        return write(options)
    if not options.peer:
        parser.error("--peer names a Python that has llm-compressor")
    return compare(options)


if __name__ == "__main__":
    raise SystemExit(main())
