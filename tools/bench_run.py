"""What asking a quantised model costs, beside transformers in float32 and llama.cpp, in one run.

    python tools/bench_run.py PLAIN QUANTISED… [--gguf FILE…] [--llama-python PROGRAM]

PLAIN is the folder of the model that was quantised, QUANTISED folders or artifacts made of it,
FILE its GGUF. Every engine is a process of its own on the same tokens; what is compared is
processor time, medians of interleaved pairs, so that others on the machine change little. On
more than one thread llama.cpp waits in a loop, which counts as work: compare with --threads 1.
llama.cpp is used through xllamacpp, of the interpreter that --llama-python names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    args = arguments()
    if args.worker:
        WORKERS[args.worker](args)
        return
    engines = [Engine("transformers", args.plain, args)]
    kinds = ["kolm", *args.also]
    engines += [Engine(kind, path, args) for path in args.quantised for kind in kinds]
    engines += [Engine("llama", path, args) for path in args.gguf]
    for engine in engines:
        engine.ask(tokens=1)  # pages are read, caches are made
    rounds = [[engine.measured() for engine in engines] for _ in range(args.pairs)]
    show(engines, rounds)
    for engine in engines:
        engine.end()
    show_starts(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("plain", type=Path)
    parser.add_argument("quantised", type=Path, nargs="*")
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument(
        "--also",
        nargs="*",
        choices=("decoder", "modules"),
        default=[],
        help="kolm on torch's operators too, and by the modules of transformers",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    return parser.parse_args()


# ------------------------------------------------------------------------------------- the parent


Told = dict[str, float]
"""What an engine says of itself, by name: seconds and megabytes."""


class Engine:
    """A process that answers with what it took.

    Args:
        kind: A key of `WORKERS`.
        path: The model.
        args: The command line.
    """

    def __init__(self, kind: str, path: Path, args: argparse.Namespace) -> None:
        self.name = f"{kind} {path.name}"
        self.sizes = args.prompt_tokens, args.new_tokens
        program = args.llama_python if kind == "llama" else sys.executable
        threads = str(args.threads)
        self.process = subprocess.Popen(
            [program, __file__, str(path), "--worker", kind, "--threads", threads],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.asked, self.answers = self.process.stdin, self.process.stdout
        self.start = self.answer()

    def answer(self) -> Told:
        """The next line of JSON that the process prints."""
        for line in self.answers:
            if line.startswith("{"):
                told: Told = json.loads(line)
                return told
        raise SystemExit(f"{self.name} ended with {self.process.wait()}")

    def ask(self, *, tokens: int) -> Told:
        """What it takes to read the prompt and say `tokens`."""
        ids = [(7 * at) % 1000 + 100 for at in range(self.sizes[0])]
        self.asked.write(json.dumps({"prompt": ids, "tokens": tokens}) + "\n")
        self.asked.flush()
        return self.answer()

    def measured(self) -> tuple[float, float]:
        """Seconds of processor time for the prompt, and for each token after the first."""
        prompt, whole = self.ask(tokens=1)["cpu_s"], self.ask(tokens=1 + self.sizes[1])["cpu_s"]
        return prompt, (whole - prompt) / self.sizes[1]

    def end(self) -> None:
        """Let the process go."""
        self.asked.close()
        self.process.wait()


def show(engines: list[Engine], rounds: list[list[tuple[float, float]]]) -> None:
    """Tokens a second, and the median ratio to every other engine in the same round."""
    print(f"{'engine':<40} {'prompt tok/s':>12} {'decode tok/s':>12}   decode (prompt) x of each")
    for at, engine in enumerate(engines):
        prompt, token = (statistics.median(row[at][part] for row in rounds) for part in (0, 1))
        ratios = [
            " ".join(
                f"{statistics.median(row[to][part] / row[at][part] for row in rounds):.2f}"
                for to in range(len(engines))
            )
            for part in (1, 0)
        ]
        print(
            f"{engine.name:<40} {engine.sizes[0] / prompt:>12.1f} {1 / token:>12.1f}"
            f"   {ratios[0]}   ({ratios[1]})"
        )


def show_starts(args: argparse.Namespace) -> None:
    """From nothing to the first token of each quantised model, and the most memory held."""
    for path in args.quantised:
        starts = []
        for _ in range(args.pairs):
            engine = Engine("kolm", path, args)
            starts.append(engine.start | engine.ask(tokens=8))
            engine.end()
        middle = {name: statistics.median(one[name] for one in starts) for name in starts[0]}
        file_mb = size_mb(path)
        print(
            f"{path.name}: imports {middle['imports_cpu_s']:.2f} s, then load to first token"
            f" {middle['first_token_cpu_s']:.2f} s ({middle['first_token_s']:.2f} s by the clock)"
        )
        print(
            f"{path.name}: peak {middle['peak_mb']:.0f} MB, pages of the file"
            f" ({file_mb:.0f} MB) among it; not of any file, at the end: {middle['own_mb']:.0f} MB;"
            f" 1.2 x file + 200 = {1.2 * file_mb + 200:.0f} MB"
        )


def size_mb(path: Path) -> float:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 1e6


# ------------------------------------------------------------------------------------- the workers


def held_mb(name: str) -> float:
    """What the kernel counts of this process.

    Args:
        name: ``VmHWM``, the most it has held, pages of mapped files among it; ``RssAnon``, what it
            holds now that is of no file.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"no {name} in /proc/self/status")


def serve(answer: Callable[[list[int], int], None], start: Told) -> None:
    """Tell `start`, then answer every line with the processor time that it took."""
    print(json.dumps(start), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        before = time.process_time()
        answer(asked["prompt"], asked["tokens"])
        took = time.process_time() - before
        held = {"peak_mb": held_mb("VmHWM"), "own_mb": held_mb("RssAnon")}
        print(json.dumps({"cpu_s": took} | held), flush=True)


def kolm(args: argparse.Namespace) -> None:
    """By the compiled decoder, without torch; another is no measurement of it."""
    before = time.process_time()
    model, start = started(args, "answering", before)
    decoder = model.model.network
    if "torch" in sys.modules:
        raise SystemExit(f"{args.plain}: not read by the compiled decoder")

    def answer(prompt: list[int], tokens: int) -> None:
        prefix = decoder.read_on(None, prompt)
        logits = prefix.logits
        for _ in range(tokens - 1):
            logits = prefix.read([int(logits[0].argmax())])

    serve(answer, start)


def on_torch(args: argparse.Namespace) -> None:
    """By torch's operators, or by the modules of transformers."""
    before = time.process_time()
    model, start = started(args, args.worker, before)
    from kolm_build.runtime.generate import continue_greedily, read_prompts

    def answer(prompt: list[int], tokens: int) -> None:
        prefix = read_prompts(model.model.network, [prompt])
        continue_greedily(prefix, max_new_tokens=tokens, stop_ids=set())

    with model.arithmetic():
        serve(answer, start)


def started(args: argparse.Namespace, way: str, before: float) -> tuple[Any, Told]:
    """The model, opened and asked one token; what that took."""
    sys.path.insert(0, str(ROOT))
    from kolm_build.runtime import answering
    from kolm_build.runtime.settings import GenerationSettings

    ways = {"answering": answering.opened, "decoder": answering.by_decoder}
    if way == "modules":
        from kolm_build.runtime import modules

        ways["modules"] = modules.opened
    imports_s = time.process_time() - before
    before, clock = time.process_time(), time.perf_counter()
    model = ways[way](args.plain, threads=args.threads)
    if model is None:
        raise SystemExit(f"{args.plain}: not read in this way")
    model.generate("Hello", settings=GenerationSettings(max_new_tokens=1))
    start = {
        "imports_cpu_s": imports_s,
        "first_token_cpu_s": time.process_time() - before,
        "first_token_s": time.perf_counter() - clock,
    }
    return model, start


def transformers_(args: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.plain, dtype=torch.float32)

    def answer(prompt: list[int], tokens: int) -> None:
        ids = torch.tensor([prompt])
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
        )

    serve(answer, {})


def llama(args: argparse.Namespace) -> None:
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path = str(args.plain)
    given.n_ctx, given.n_parallel, given.n_gpu_layers = 2048, 1, 0
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = args.threads
    given.warmup, given.verbosity, given.port = False, 0, 0
    server = xllamacpp.Server(given)

    def answer(prompt: list[int], tokens: int) -> None:
        server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": tokens,
                "temperature": 0.0,
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )

    serve(answer, {})


WORKERS = {
    "kolm": kolm,
    "decoder": on_torch,
    "modules": on_torch,
    "llama": llama,
    "transformers": transformers_,
}

if __name__ == "__main__":
    main()
