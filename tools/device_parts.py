"""The parts of `tools/device_check.py`: each is run in a process of its own, and gives a value."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from tools.device_libraries import load

Json = dict[str, Any]

MANY_FLOPS = 1e11
THIN_VARIANT, THIN_SIZE = 4, 64
"""The tile shape for products with few rows or columns, and how few."""
OTHER_BITS = "OTHER BITS"


def part_hashes(device: str, *, big: bool = False) -> Json:
    """A hash of every case of tools/device_cases.py."""
    import torch

    from tools.device_cases import cases, digest

    load(device, poison=True)
    found: Json = {}
    for name, case in cases("cuda" if device == "cuda" else "cpu", big=big):
        try:
            found[name] = digest(case())
        except Exception as error:  # noqa: BLE001 -- it is a difference, told by name
            found[name] = f"error: {error}"[:300]
        if device == "cuda" and found[name].startswith("error: CUDA"):
            break  # the context is lost
    if device == "cuda":
        torch.cuda.synchronize()
    return found


def tiny_model(kind: str, attention: str) -> Any:
    """A two-layer Llama or GPT-2 with weights from seed 0, on the CPU."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=512, hidden_size=128, intermediate_size=352, num_hidden_layers=2,
            num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=128,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation=attention,
        )  # fmt: skip
        make = LlamaForCausalLM
    else:
        drop = 0.1 if attention == "eager" else 0.0
        config = GPT2Config(
            vocab_size=512, n_embd=128, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0.1,
            embd_pdrop=0.1, attn_pdrop=drop, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            attn_implementation=attention,
        )  # fmt: skip
        make = GPT2LMHeadModel
    return make(config)


def weights_hash(model: Any) -> str:
    """SHA-256 over the sorted weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def train(model: Any, device: str, steps: int) -> list[str]:
    """AdamW steps on fixed random tokens; the losses' exact values."""
    import numpy as np
    import torch

    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    draw = np.random.Generator(np.random.PCG64(1))
    losses = []
    for _ in range(steps):
        tokens = torch.from_numpy(draw.integers(3, 512, size=(4, 48))).to(device)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.item()).hex())
    return losses


def part_models(device: str) -> Json:
    """Training and greedy generation of tiny models: hashes, losses, tokens."""
    import torch

    load(device)
    place = "cuda" if device == "cuda" else "cpu"
    found: Json = {}
    for kind in ("llama", "gpt2"):
        for attention in ("sdpa", "eager"):
            model = tiny_model(kind, attention)
            start = weights_hash(model)
            losses = train(model, place, 20 if device != "emulated" else 2)
            trained = weights_hash(model)
            model.eval()
            prompt = torch.arange(3, 13)[None].to(place)
            tokens = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False
            )
            found[f"{kind} {attention}"] = {
                "start": start, "losses": losses, "weights": trained, "tokens": tokens[0].tolist(),
            }  # fmt: skip
    return found


def milliseconds(work: Callable[[], Any], repeats: int) -> float:
    """The median time of `work` on the GPU."""
    import torch

    for _ in range(2):
        work()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return float(statistics.median(times))


SHAPES = [
    *((n, n, n, "nn") for n in (1024, 2048, 4096, 8192)),
    (4096, 4096, 4096, "nt"), (4096, 4096, 4096, "tn"),
    (4096, 576, 576, "nt"), (4096, 192, 576, "nt"), (4096, 1536, 576, "nt"),
    (4096, 576, 1536, "nt"), (4096, 49152, 576, "nt"), (4096, 576, 49152, "nn"),
    (49152, 576, 4096, "tn"), (576, 1536, 4096, "tn"), (1, 4096, 4096, "nt"),
    (1, 49152, 576, "nt"), (8, 4096, 4096, "nt"), (32, 4096, 4096, "nt"),
]  # fmt: skip


def operands(m: int, n: int, k: int, layout: str) -> tuple[Any, Any]:
    """Random operands of a product; `t` is a matrix stored transposed."""
    import torch

    a = torch.rand((k, m) if layout[0] == "t" else (m, k), device="cuda") - 0.5
    b = torch.rand((n, k) if layout[1] == "t" else (k, n), device="cuda") - 0.5
    return a.t() if layout[0] == "t" else a, b.t() if layout[1] == "t" else b


def product_row(ours: Any, m: int, n: int, k: int, layout: str) -> Json:
    """TFLOP/s of one product: cuBLAS's, ours, and each tile shape's that gives the same bits."""
    import torch

    a, b = operands(m, n, k, layout)
    flops = 2.0 * m * n * k
    repeats = 7 if flops > MANY_FLOPS else 20

    def speed() -> float:
        return flops / milliseconds(lambda: torch.mm(a, b), repeats) / 1e9

    row: Json = {"stock": speed()}
    ours.enable()
    reference = torch.mm(a, b)
    row["ours"] = speed()
    for variant in range(ours.variants()):
        if variant != THIN_VARIANT or min(m, n) <= THIN_SIZE:
            ours.force_variant(variant)
            same = torch.equal(torch.mm(a, b), reference)
            row[f"variant {variant}"] = speed() if same else OTHER_BITS
    ours.force_variant(-1)
    ours.disable()
    return row | {"ratio": row["ours"] / row["stock"]}


def part_products(device: str) -> Json:
    """Our product against cuBLAS without TF32: TFLOP/s, the ratio, and every tile shape."""
    import torch

    load(device)
    ours = torch.ops.kolm_portable_cuda
    ours.disable()
    found: Json = {}
    for m, n, k, layout in SHAPES:
        name = f"{m}x{n}x{k} {layout}"
        found[name] = product_row(ours, m, n, k, layout)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    return found


def smollm2() -> Any:
    """A model of SmolLM2-135M's shape with random weights on the GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
        tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        return LlamaForCausalLM(config)


def step_times(*, fused: bool, steps: int) -> Json:
    """Milliseconds of a training step of 8 x 512 tokens, and of its parts."""
    import torch

    model = smollm2().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    tokens = torch.randint(0, 49152, (8, 512), generator=torch.Generator().manual_seed(1)).cuda()

    def step() -> tuple[list[float], torch.Tensor]:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        marks[0].record()
        loss = model(input_ids=tokens, labels=tokens).loss
        marks[1].record()
        loss.backward()
        marks[2].record()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        marks[3].record()
        marks[3].synchronize()
        return [marks[i].elapsed_time(marks[i + 1]) for i in range(3)], loss

    done = [step() for _ in range(steps + 2)][2:]  # the first ones warm up
    middle = [statistics.median(column) for column in zip(*(row for row, _ in done), strict=True)]
    return {
        "forward": middle[0], "backward": middle[1], "optimizer": middle[2], "step": sum(middle),
        "loss": done[-1][1].item(), "peak_bytes": torch.cuda.max_memory_allocated(),
    }  # fmt: skip


def part_step(device: str) -> Json:
    """The whole training step of SmolLM2-135M's shape, portable and stock, in one process."""
    import torch

    load(device)
    torch.use_deterministic_algorithms(mode=False)  # stock at its fastest; ours knows no other way
    found: Json = {}
    for name in ("portable", "stock", "portable again", "stock again"):
        if name.startswith("portable"):
            torch.ops.kolm_portable_cuda.enable()
        else:
            torch.ops.kolm_portable_cuda.disable()
        torch.cuda.reset_peak_memory_stats()
        found[name] = step_times(fused=True, steps=5)
        torch.cuda.empty_cache()
        print(name, json.dumps(found[name]), flush=True)
    pairs = (("portable", "stock"), ("portable again", "stock again"))
    found["portable / stock"] = [found[a]["step"] / found[b]["step"] for a, b in pairs]
    torch.ops.kolm_portable_cuda.enable()
    found["portable, foreach"] = step_times(fused=False, steps=3)
    return found


def part_native(device: str) -> Json:
    """native-1: the switches, the machine's record, and 20 steps."""
    from dataclasses import asdict

    import torch

    from kolm_build.engine.nvml import read_devices
    from kolm_build.numerics.native import check_switches, set_switches

    set_switches()
    found: Json = {"accelerators": [asdict(one) for one in read_devices()]}
    check_switches()
    for kind in ("llama", "gpt2"):
        model = tiny_model(kind, "sdpa")
        train(model, device, 20)
        found[kind] = weights_hash(model)
    torch.cuda.synchronize()
    return found


def part_load(device: str) -> Json:
    """Whether the libraries can be loaded, and the machine's facts."""
    import torch
    import transformers

    load(device)
    found: Json = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["sum"] = torch.ones(3, device="cuda").exp().sum().item()
    return found


PARTS: dict[str, Callable[..., Json]] = {
    "load": part_load,
    "hashes": part_hashes,
    "hashes-big": partial(part_hashes, big=True),
    "models": part_models,
    "products": part_products,
    "step": part_step,
    "native": part_native,
}
