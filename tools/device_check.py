"""Checks the numerics classes on a machine with an NVIDIA GPU, in independent parts.

    bash tools/device_check.sh OUT          everything
    python3 tools/device_check.py hashes --device cpu --file F     one part
    python3 tools/device_check.py record    write the hashes that every machine must give

A part that fails, crashes or takes too long does not stop the next one, and is never a pass.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

EXPECTED = ROOT / "tests" / "numerics" / "device_hashes.json"
BUILT = ROOT / "build" / "device"
LIBRARIES = ("libkolm_portable.so", "libkolm_portable_cuda.so")
TOTAL_SECONDS = 470.0
MANY_FLOPS = 1e11
THIN_VARIANT, THIN_SIZE = 4, 64
"""The tile shape for products with few rows or columns, and how few."""
OTHER_BITS = "OTHER BITS"

Json = dict[str, Any]


# ---- The parts, each a process of its own -------------------------------------------------------


def library(name: str) -> Path | None:
    """Where a built library lies, or None."""
    places = (BUILT, BUILT / "kolm_build/numerics/csrc/cuda", ROOT / "kolm_build/numerics")
    return next((place / name for place in places if (place / name).is_file()), None)


def load(device: str, *, poison: bool = False) -> None:
    """Compute with the portable kernels: on the CPU always, on the GPU where `device` is one.

    Args:
        device: cpu, cuda or emulated.
        poison: Fill new memory with NaN, so that what a kernel forgets to write shows.
    """
    import torch

    names = ["libkolm_portable_emulated.so" if device == "emulated" else "libkolm_portable.so"]
    if device == "cuda":
        names.append("libkolm_portable_cuda.so")
    for name in names:
        path = library(name)
        if path is None and device == "cuda" and name == "libkolm_portable.so":
            print("the CPU's kernels are not built: the CPU part of the work is stock", flush=True)
            continue
        if path is None:
            raise SystemExit(f"{name} is not built")
        torch.ops.load_library(str(path))
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = poison
    torch.backends.cuda.matmul.allow_tf32 = False
    for namespace in ("kolm_portable", "kolm_portable_cuda"):
        if hasattr(torch.ops, namespace) and hasattr(getattr(torch.ops, namespace), "enable"):
            getattr(torch.ops, namespace).enable()


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


# ---- Running them all ---------------------------------------------------------------------------


class Run:
    """One run of every part.

    Args:
        out: Where results and logs go.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.deadline = time.monotonic() + TOTAL_SECONDS
        self.results: Json = {}
        self.lines: list[str] = []
        self.failed = False

    def say(self, line: str) -> None:
        """Add a line to the report."""
        print(line, flush=True)
        self.lines.append(line)
        (self.out / "report.txt").write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def verdict(self, name: str, detail: str, *, passed: bool) -> None:
        """Say whether a check passed."""
        self.failed |= not passed
        self.say(f"{'PASS' if passed else 'FAIL'}  {name}: {detail}")

    def keep(self, name: str, value: Any) -> None:
        """Write a result down at once."""
        self.results[name] = value
        text = json.dumps(self.results, indent=1, sort_keys=True)
        (self.out / "results.json").write_text(text + "\n", encoding="utf-8")

    def limit(self, seconds: float) -> float:
        """`seconds`, or what is left of the whole."""
        return max(1.0, min(seconds, self.deadline - time.monotonic()))

    def start(self, name: str, device: str) -> subprocess.Popen[str]:
        """Start a part beside others; its output goes to the common log."""
        file = self.out / f".{name}-{device}.json"
        file.unlink(missing_ok=True)
        command = [sys.executable, __file__, name, "--device", device, "--file", str(file)]
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"\n==== {name} {device}\n")
            log.flush()
            return subprocess.Popen(command, stdout=log, stderr=log, text=True, cwd=ROOT)

    def finish(
        self, process: subprocess.Popen[str], name: str, device: str, seconds: float
    ) -> Json:
        """The part's result; empty where it failed, which is a failed check."""
        file = self.out / f".{name}-{device}.json"
        try:
            status = process.wait(self.limit(seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.verdict(f"{name} on {device}", f"not done in {seconds:.0f} s", passed=False)
            return {}
        if status != 0 or not file.is_file():
            self.verdict(f"{name} on {device}", f"exit status {status}, see log.txt", passed=False)
            return {}
        value: Json = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return value


def build(run: Run) -> bool:
    """Builds both libraries, unless they lie in build/device already."""
    if all(library(name) for name in LIBRARIES):
        facts = run.finish(run.start("load", "cuda"), "load", "cuda", 60)
        run.keep("load", facts)
        if facts:
            run.say(f"note  build: libraries found in build/device; {json.dumps(facts)}")
            return True
        run.say("note  build: the libraries found do not load; building them anew")
        for name in LIBRARIES:
            found = library(name)
            if found is not None:
                found.unlink()
    begin = time.monotonic()
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(BUILT), "-G", "Ninja", "-DKOLM_CUDA=ON",
        "-DKOLM_TESTING=OFF", "-DKOLM_CUDA_ARCHITECTURES=90",
    ]  # fmt: skip
    commands = (
        configure,
        [
            "ninja", "-C", str(BUILT), "-k", "0", f"-j{os.cpu_count()}", "kolm_portable_cuda",
            "kolm_portable",
        ],
    )  # fmt: skip
    with (run.out / "build.log").open("w", encoding="utf-8") as log:
        for command in commands:
            try:
                subprocess.run(command, stdout=log, stderr=log, timeout=run.limit(200), check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                log.write(f"{error}\n")
    for name in LIBRARIES:
        found = library(name)
        took = f"{time.monotonic() - begin:.0f} s"
        run.verdict(f"build {name}", took, passed=found is not None)
    return library("libkolm_portable_cuda.so") is not None


def differences(a: Json, b: Json) -> list[str]:
    """The names whose values differ, are missing or are errors."""
    return [
        name for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name) or str(a.get(name)).startswith("error")
    ]  # fmt: skip


def compare(run: Run, name: str, cpu: Json, gpu: Json) -> None:
    """Say whether a CPU and the GPU gave the same, and as much as the committed file has."""
    if not cpu or not gpu:
        run.verdict(f"{name}: CPU = GPU", "nothing to compare", passed=False)
        return
    other = differences(cpu, gpu)
    equal = f"{len(cpu) - len(other)} of {len(cpu)} equal"
    run.verdict(f"{name}: CPU = GPU", equal, passed=not other)
    for item in other[:40]:
        run.say(f"      {item}: {str(cpu.get(item))[:140]} / {str(gpu.get(item))[:140]}")


def against_committed(run: Run, name: str, found: Json) -> None:
    """The same against the hashes that another machine made."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8")).get(name, {})
    if not expected or not found:
        run.verdict(f"{name}: GPU = committed", "nothing to compare", passed=False)
        return
    other = differences(expected, {key: found.get(key) for key in expected})
    equal = f"{len(expected) - len(other)} of {len(expected)}"
    run.verdict(f"{name}: GPU = committed", equal, passed=not other)
    for item in other[:10]:
        run.say(f"      {item}")


def on_both(run: Run, part: str, seconds: float) -> dict[str, Json]:
    """A part's results on the CPU and on the GPU, which work at the same time."""
    processes = {device: run.start(part, device) for device in ("cuda", "cpu")}
    found = {
        device: run.finish(process, part, device, seconds) for device, process in processes.items()
    }
    run.keep(part, found)
    return found


def check_hashes(run: Run) -> None:
    """Every family of kernels: a CPU's hashes and the GPU's."""
    for part, name in (("hashes", "kernels"), ("hashes-big", "kernels, larger sizes")):
        found = on_both(run, part, 80)
        compare(run, name, found["cpu"], found["cuda"])
        if part == "hashes":
            against_committed(run, part, found["cuda"])


def check_models(run: Run) -> None:
    """Training and generation."""
    found = on_both(run, "models", 90)
    compare(run, "models", found["cpu"], found["cuda"])
    against_committed(run, "models", found["cuda"])


def check_products(run: Run) -> None:
    """Speed of the product; the bits of every tile shape."""
    found = run.finish(run.start("products", "cuda"), "products", "cuda", 100)
    run.keep("products", found)
    wrong = [name for name, row in found.items() if OTHER_BITS in row.values()]
    run.verdict(
        "products: every tile shape has the same bits", str(wrong), passed=bool(found) and not wrong
    )
    run.say("      TFLOP/s, float32            stock    ours   ratio   each tile shape")
    for name, row in found.items():
        speeds = [row.get(f"variant {number}") for number in range(5)]
        tiles = " ".join(f"{s:7.2f}" if isinstance(s, float) else f"{'-':>7}" for s in speeds)
        stock, ours, ratio = row["stock"], row["ours"], row["ratio"]
        run.say(f"      {name:24} {stock:8.2f}{ours:8.2f}{ratio:8.3f}   {tiles}")


def check_step(run: Run) -> None:
    """Speed of a training step."""
    found = run.finish(run.start("step", "cuda"), "step", "cuda", 90)
    run.keep("step", found)
    run.verdict("training step of SmolLM2-135M's shape", json.dumps(found), passed=bool(found))


def check_native(run: Run) -> None:
    """native-1 twice."""
    first = run.finish(run.start("native", "cuda"), "native", "cuda", 60)
    second = run.finish(run.start("native", "cuda"), "native", "cuda", 60)
    run.keep("native", [first, second])
    told = first.get("accelerators")
    run.verdict("native-1: NVML tells the GPU", str(told), passed=bool(told))
    same = bool(first) and first == second
    run.verdict("native-1: two runs give the same weights", json.dumps(first), passed=same)


def run_all(out: Path) -> int:
    """Every part in order of importance; 0 where all passed."""
    run = Run(out)
    if not build(run):
        run.say("the GPU's kernels are not built: only native-1 can be checked")
        check_native(run)
        return 1
    for check in (check_hashes, check_models, check_products, check_step, check_native):
        begin = time.monotonic()
        try:
            check(run)
        except Exception as error:  # noqa: BLE001 -- one part never stops the next
            run.verdict(check.__name__, repr(error), passed=False)
        run.say(f"note  {check.__name__}: {time.monotonic() - begin:.0f} s")
    return 1 if run.failed else 0


def record() -> int:
    """Write the hashes that this machine's CPU gives."""
    found = {}
    for name in ("hashes", "models"):
        file = BUILT / f"{name}.json"
        command = [sys.executable, __file__, name, "--device", "cpu", "--file", str(file)]
        subprocess.run(command, check=True, cwd=ROOT)
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    EXPECTED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=["all", "record", *PARTS])
    parser.add_argument("--out", type=Path, help="folder of all results")
    parser.add_argument("--device", choices=["cpu", "cuda", "emulated"], default="cuda")
    parser.add_argument("--file", type=Path, help="the part's result, JSON")
    options = parser.parse_args()
    if options.part == "all":
        if options.out is None:
            parser.error("all needs --out")
        options.out.mkdir(parents=True, exist_ok=True)
        return run_all(options.out.resolve())
    if options.part == "record":
        return record()
    if options.file is None:
        parser.error("a part needs --file")
    value = PARTS[options.part](options.device)
    options.file.write_text(json.dumps(value), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
