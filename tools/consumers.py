"""Whether the programs that load our exports say what `kolm run` says: greedy tokens, and the gaps.

    python tools/consumers.py triage.kolm --llama-python consumers/bin/python

Exports the artifact to safetensors, gguf-f16 and gguf-q8_0, asks the held-out prompts of the
artifact of `kolm run` (the portable kernels), of transformers (stock kernels, in bfloat16 and in
float32) and of llama.cpp (through the wheel xllamacpp, in an interpreter of its own), each in a
process of its own, and prints a table. Where the first token that differs is, two numbers explain
it: by how much kolm prefers its token to the other, and by how much the consumer prefers its own.
A difference of rounding has gaps of the size of the logits' own difference; a wrong file does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

ROOT = Path(__file__).resolve().parents[1]
PROMPTS, KOLM = "prompts.json", "kolm.json"
TOP = 40
"""How many of the likeliest tokens llama.cpp tells of."""


class Said(TypedDict):
    """What a consumer says to a prompt.

    Attributes:
        said: Its tokens.
        off: The largest difference of a logit from kolm's; None where it tells no logits.
        gap: By how much it prefers its token to kolm's, where the first differs; None where none
            does, or where it does not tell.
        same_prompt: Whether it cut the prompt into the same tokens.
    """

    said: list[int]
    off: float | None
    gap: float | None
    same_prompt: bool


def ask_kolm(place: Path, artifact: str, count: int, longest: int) -> None:
    """Note the prompts, and the tokens and logits of `kolm run`."""
    import numpy as np
    import torch

    from kolm_build.core.numerics import Numerics
    from kolm_build.core.request import Circumstances
    from kolm_build.numerics.apply import applied
    from kolm_build.numerics.kernels import LIBRARY
    from kolm_build.runtime.generate import continue_greedily, read_prompts
    from kolm_build.runtime.loading import load

    here = Circumstances(kernels=str(LIBRARY), threads=torch.get_num_threads())
    prompts, answers = [], []
    with applied(Numerics(cls="portable-1"), here):
        model = load(artifact)
        for number, messages in enumerate(held_out(artifact, count)):
            ids = model.chat.prompt_ids(messages)
            text = model.chat.tokenizer.decode(ids, skip_special_tokens=False)
            (said,) = continue_greedily(
                read_prompts(model.network, [ids]),
                max_new_tokens=longest,
                stop_ids=model.chat.stop_ids,
            )
            with torch.inference_mode():
                seen = model.network(input_ids=torch.tensor([[*ids, *said[:-1]]]))
            logits = seen.logits[0, len(ids) - 1 :].float().numpy()
            assert logits.argmax(axis=1).tolist() == said, "a whole pass is the tokens one by one"
            np.save(place / f"{number}.npy", logits)
            prompts.append({"text": text, "ids": ids})
            answers.append(said)
    stops = sorted(model.chat.stop_ids)
    (place / PROMPTS).write_text(json.dumps({"prompts": prompts, "stops": stops}))
    (place / KOLM).write_text(json.dumps(answers))


def held_out(artifact: str, count: int) -> Iterator[Sequence[dict[str, str]]]:
    """The messages of the first held-out rows of an artifact."""
    from kolm_build.attest.container import Container

    path = "eval/holdout.jsonl"
    with Container.open(Path(artifact)) as container:
        lines = container.checked(path, container.entries[path].size).decode().splitlines()
    for line in lines[:count]:
        yield json.loads(line)["messages"]


def ask_transformers(place: Path, folder: str, dtype: str, longest: int) -> None:
    """Print what transformers says, and how far its logits are from kolm's on kolm's tokens."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    asked = json.loads((place / PROMPTS).read_text())
    ours = json.loads((place / KOLM).read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    found: list[Said] = []
    for number, prompt in enumerate(asked["prompts"]):
        ids, said = prompt["ids"], ours[number]
        with torch.inference_mode():
            made = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=longest,
                eos_token_id=asked["stops"],
                pad_token_id=asked["stops"][0],
            )[0, len(ids) :].tolist()
            logits = model(torch.tensor([[*ids, *said[:-1]]])).logits[0, len(ids) - 1 :].float()
        off = float(np.abs(logits.numpy() - np.load(place / f"{number}.npy")).max())
        at = first_difference(said, made)
        gap = None if at is None else float(logits[at, made[at]] - logits[at, said[at]])
        found.append({"said": made, "off": off, "gap": gap, "same_prompt": True})
    print(json.dumps(found))


def ask_llama(place: Path, file: str, threads: int, longest: int) -> None:
    """Print what llama.cpp says to the prompts as text, so that its tokenizer is compared too."""
    import xllamacpp

    asked = json.loads((place / PROMPTS).read_text())
    ours = json.loads((place / KOLM).read_text())
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 2048, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup, params.verbosity, params.port = False, 0, 0
    server = xllamacpp.Server(params)
    found: list[Said] = []
    for number, prompt in enumerate(asked["prompts"]):
        answer = server.handle_completions(
            {
                "prompt": prompt["text"],
                "n_predict": longest,
                "temperature": 0.0,
                "n_probs": TOP,
                "cache_prompt": False,
            }
        )
        steps = answer["choices"][0]["logprobs"]["content"]
        made = [step["id"] for step in steps]
        at = first_difference(ours[number], made)
        found.append(
            {
                "said": made,
                "off": None,
                "gap": None if at is None else llama_gap(steps[at], ours[number][at]),
                "same_prompt": answer["usage"]["prompt_tokens"] == len(prompt["ids"]),
            }
        )
    print(json.dumps(found))


def llama_gap(step: dict[str, Any], other: int) -> float | None:
    """By how much llama.cpp prefers its token to `other`; None where `other` is far behind."""
    known: dict[int, float] = {one["id"]: one["logprob"] for one in step["top_logprobs"]}
    return known[step["id"]] - known[other] if other in known else None


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first place where two answers differ; None where they are one."""
    if list(ours) == list(theirs):
        return None
    pairs = zip(ours, theirs, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)) - 1)


def table(place: Path, results: dict[str, list[Said]]) -> str:
    """The rows of the comparison, as Markdown."""
    ours = json.loads((place / KOLM).read_text())
    tokens = sum(map(len, ours))
    lines = [
        f"{len(ours)} prompts, {tokens} tokens of `kolm run`.",
        "",
        "| consumer | same answers | largest difference of a logit | kolm's gap, consumer's gap"
        " where an answer differs first |",
        "|---|---|---|---|",
    ]
    for name, found in results.items():
        same = sum(one["said"] == said for one, said in zip(found, ours, strict=True))
        offs = [one["off"] for one in found if one["off"] is not None]
        off = f"{max(offs):.3g}" if offs else "-"
        gaps = "; ".join(gaps_of(place, ours, found)) or "-"
        lines.append(f"| {name} | {same} of {len(ours)} | {off} | {gaps} |")
    return "\n".join(lines)


def gaps_of(place: Path, ours: list[list[int]], found: list[Said]) -> Iterator[str]:
    """What explains each answer that differs."""
    import numpy as np

    for number, (said, one) in enumerate(zip(ours, found, strict=True)):
        at = first_difference(said, one["said"])
        if at is None:
            continue
        logits = np.load(place / f"{number}.npy")[at]
        gap = float(logits[said[at]] - logits[one["said"][at]])
        theirs = "more than the top shows" if one["gap"] is None else f"{one['gap']:.3g}"
        note = "" if one["same_prompt"] else ", prompts of other tokens"
        yield f"{gap:.3g}, {theirs}{note}"


def in_process(*argv: object, python: str = sys.executable) -> list[Said]:
    """What this program prints with `argv` in a process of its own."""
    done = subprocess.run(
        [python, __file__, *map(str, argv)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: list[Said] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else []
    return found


def export(artifact: str, form: str, out: Path, store: Path) -> str:
    """The path of the export of `artifact` to `form`."""
    argv = ["export", artifact, "--format", form, "-o", str(out), "--store", str(store)]
    subprocess.run([sys.executable, "-m", "kolm_build", *argv], check=True, stdout=sys.stderr)
    return str(out)


def compare(args: argparse.Namespace) -> int:
    """Print the table; 1 if a prompt was cut into other tokens."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        store = args.store or place / "store"
        folder = export(args.artifact, "safetensors", place / "model", store)
        files = {
            form: export(args.artifact, form, place / f"{form}.gguf", store)
            for form in ("gguf-f16", "gguf-q8_0")
        }
        in_process("kolm", place, args.artifact, args.prompts, args.max_new_tokens)
        results = {
            f"transformers, {dtype}": in_process(
                "transformers", place, folder, dtype, args.max_new_tokens
            )
            for dtype in ("bfloat16", "float32")
        }
        for form, file in files.items() if args.llama_python else ():
            results[f"llama.cpp, {form}"] = in_process(
                *("llama", place, file, args.threads, args.max_new_tokens),
                python=args.llama_python,
            )
        print(table(place, results))
        if not args.llama_python:
            print("\nllama.cpp was not asked: name an interpreter with xllamacpp, --llama-python")
    prompts = [one["same_prompt"] for found in results.values() for one in found]
    return 0 if all(prompts) else 1


def main() -> int:
    """The command line, and that of the processes it starts."""
    if sys.argv[1:2] == ["kolm"]:
        ask_kolm(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    elif sys.argv[1:2] == ["transformers"]:
        ask_transformers(Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
    elif sys.argv[1:2] == ["llama"]:
        ask_llama(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
        parser.add_argument("artifact")
        parser.add_argument("--prompts", type=int, default=50)
        parser.add_argument("--max-new-tokens", type=int, default=32)
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--store", type=Path)
        parser.add_argument("--llama-python")
        return compare(parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
