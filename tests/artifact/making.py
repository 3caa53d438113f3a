"""A tiny artifact and its parts, for the tests of the packager and the verifier.

The model is random bytes in the shapes of a Llama, the evaluation is written by hand; score, gate
and package are the real steps.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from blake3 import blake3

from kolm_build.core import cbor, strict_json
from kolm_build.core.attached import PREFIX, Attached, Mixed, Routing, Virtual
from kolm_build.core.derivation import ContentInput, Derivation, OutputInput
from kolm_build.core.digest import Digest, RecordKind
from kolm_build.core.environment import Distribution, Environment
from kolm_build.core.gated import Expert, Gated
from kolm_build.core.lock import Lock, LockedInput, render_lock
from kolm_build.core.numerics import Numerics, Platform
from kolm_build.core.quantisation import SCHEMES
from kolm_build.core.quantisation_config import grouped, to_config
from kolm_build.core.request import StepRequest
from kolm_build.core.safetensors import (
    DTYPE_BYTES,
    PREFIX_BYTES,
    data_order,
    encode_header,
    header_length,
    parse_header,
    weights_record,
)
from kolm_build.core.split import is_holdout
from kolm_build.steps import gate, package, score
from kolm_build.steps._entry import Events

NAME = "tiny"
SEED = "s"
HIDDEN, VOCABULARY, LAYERS = 8, 32, 1
LABELS = ("cold", "warm")

Files = dict[str, bytes]
Tensors = list[tuple[str, str, tuple[int, ...]]]


def digest(text: str) -> Digest:
    """Some digest."""
    return Digest.of_blob(text.encode())


def row(number: int, answer: str) -> dict[str, object]:
    """A row with its id."""
    value: dict[str, object] = {
        "answer": answer,
        "group": "",
        "messages": [{"role": "user", "content": f"Number {number}?"}],
    }
    return value | {"id": f"sha256:{hashlib.sha256(cbor.encode(value)).hexdigest()}"}


def is_held_out(number: int) -> bool:
    """The side of the row `number`."""
    return is_holdout(f"Number {number}?", SEED, 5)


def holdout(count: int = 4) -> list[dict[str, object]]:
    """The first `count` held-out rows."""
    numbers = [number for number in range(count * 20) if is_held_out(number)][:count]
    return [row(number, LABELS[index % 2]) for index, number in enumerate(numbers)]


def result(held: Mapping[str, object], said: str) -> dict[str, object]:
    """The result of a row for which the model says `said`."""
    return {
        "id": held["id"],
        "answer": held["answer"],
        "output": f" {said}",
        "correct": said == held["answer"],
        "label_output": said if said in LABELS else LABELS[0],
        "label_correct": (said if said in LABELS else LABELS[0]) == held["answer"],
        "verified": said in LABELS,
        "prompt_tokens": 7,
        "output_tokens": 2,
    }


TENSORS = (
    ("model.embed_tokens.weight", "BF16", (VOCABULARY, HIDDEN)),
    ("model.layers.0.mlp.up_proj.weight", "BF16", (HIDDEN * 2, HIDDEN)),
    ("model.layers.0.self_attn.q_proj.weight", "BF16", (HIDDEN, HIDDEN)),
    ("model.norm.weight", "BF16", (HIDDEN,)),
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
}


def weights() -> bytes:
    """The tiny model's weights."""
    size = sum(2 * _count(shape) for _, _, shape in data_order(TENSORS))
    return encode_header(TENSORS, {"format": "pt"}) + hashlib.shake_128(b"w").digest(size)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def cost() -> tuple[int, int]:
    """FLOPs and bytes of a request of 7 tokens with an answer of 2, counted one by one."""
    body, head, read = 3 * HIDDEN * HIDDEN, VOCABULARY * HIDDEN, 8
    flops = 2 * body * read + 2 * head * 2
    flops += sum(2 * 2 * LAYERS * HIDDEN * before for before in range(1, read + 1))
    parameter_bytes = 2 * sum(_count(shape) for _, _, shape in TENSORS)
    cache_row = 2 * 4 * 2 * LAYERS
    return flops, 2 * parameter_bytes + cache_row * read + cache_row * 8


def summary(results: list[dict[str, object]], weight_bytes: int) -> dict[str, object]:
    """The summary of `results`."""
    flops, moved = cost()
    return {
        "format": "evaluation/1",
        "metric": "exact",
        "rows": len(results),
        "correct": sum(each["correct"] is True for each in results),
        "label_correct": sum(each["label_correct"] is True for each in results),
        "verified": sum(each["verified"] is True for each in results),
        "prompt_tokens": 7 * len(results),
        "output_tokens": 2 * len(results),
        "parameters": sum(_count(shape) for _, _, shape in TENSORS),
        "weight_bytes": weight_bytes,
        "flops_per_request": flops,
        "bytes_per_request": moved,
    }


BUDGETS: dict[str, str | int] = {
    "device_bytes_per_s": 10**9,
    "device_flops_per_s": 10**9,
    "device_microusd_per_hour": 10**5,
    "device_name": "toy",
    "cost_budget_microusd": 1000,
    "latency_budget_us": 100,
    "size_budget_bytes": 4096,
}
GATE: dict[str, str | int] = {"k_min": "0.5", "accuracy_min": "0.5", "coverage_min": "0"}
EVALUATE: dict[str, str | int] = {
    "batch_size": 4,
    "labels": "\n".join(LABELS),
    "max_new_tokens": 4,
    "metric": "exact",
    "verifier": "labels",
}
DATASET: dict[str, str | int] = {"group": "", "modulus": 5, "split_seed": SEED}
PLATFORM = Platform(isa="x86_64-v3", vendor="GenuineIntel")


ENVIRONMENT = Environment.of(
    python="3.11.7",
    interpreter=digest("python"),
    distributions=[Distribution(name="torch", version="2.13.0+cpu", content=digest("torch"))],
)


def node(name: str, step: str, params: Mapping[str, str | int], **inputs: object) -> Derivation:
    """A derivation of `step`; `inputs` are derivations or digests by role."""
    inherits = step in ("sft", "merge", "evaluate", "quantise")
    found = {
        role: OutputInput(derivation=value.digest, output=value.outputs[0][0])
        if isinstance(value, Derivation)
        else ContentInput(content=value)
        for role, value in inputs.items()
    }
    outputs = ("holdout", "train") if step == "dataset" else ("out",)
    return Derivation(
        name=name,
        step=step,
        code=digest(f"code {step}"),
        environment=ENVIRONMENT.digest if inherits else None,
        params=tuple(sorted(params.items())),
        inputs=tuple(sorted(found.items())),
        outputs=tuple((output, None) for output in outputs),
        numerics=Numerics(cls="native-1" if inherits else "exact-1"),
        platform=PLATFORM if inherits else None,
    )


def derivations() -> list[Derivation]:
    """Everything above the package, of a base that was evaluated too."""
    rows = node("dataset", "dataset", DATASET, rows=digest("data"))
    base = node("base", "import-model", {}, source=digest("base"))
    tuned = node("train-1", "sft", {"epochs": 1}, model=base, train=rows)
    before = node("base-evaluation", "evaluate", EVALUATE, model=base, holdout=rows)
    after = node("evaluation", "evaluate", EVALUATE, model=tuned, holdout=rows)
    scored = node("score", "score", BUDGETS, evaluation=after, base=before, model=tuned)
    passed = node("gate", "gate", GATE, score=scored, evaluation=after)
    return [rows, base, tuned, before, after, scored, passed]


def few_derivations() -> list[Derivation]:
    """The fewest derivations that an artifact can have."""
    rows = node("dataset", "dataset", DATASET, rows=digest("data"))
    after = node("evaluation", "evaluate", EVALUATE, model=digest("base"), holdout=rows)
    scored = node("score", "score", BUDGETS, evaluation=after, model=digest("base"))
    return [rows, after, scored, node("gate", "gate", GATE, score=scored, evaluation=after)]


QUANTISE: dict[str, str | int] = {
    "embeddings": "int8",
    "group": 0,
    "keep": "",
    "method": "rtn",
    "scheme": "w8a8",
}


def quantised_derivations() -> list[Derivation]:
    """Everything above the package of a quantised model."""
    rows, base, tuned, before, full, _, _ = derivations()
    full = node("full-evaluation", "evaluate", EVALUATE, model=tuned, holdout=rows)
    was = node("full-score", "score", BUDGETS, evaluation=full, base=before, model=tuned)
    codes = node("quantise", "quantise", QUANTISE, model=tuned)
    after = node("evaluation", "evaluate", EVALUATE, model=codes, holdout=rows)
    scored = node("score", "score", BUDGETS, evaluation=after, base=before, model=codes)
    passed = node("gate", "gate", GATE, score=scored, evaluation=after)
    return [rows, base, tuned, before, full, was, codes, after, scored, passed]


def lock() -> str:
    """The lock that the derivations go with."""
    made = (*derivations(), *quantised_derivations(), *attached_derivations())
    steps = sorted({each.step for each in made} | {"package"})
    return render_lock(
        Lock(
            name=NAME,
            sections={"base": digest("section")},
            numerics=Numerics(cls="native-1"),
            environment=ENVIRONMENT,
            inputs=(
                _locked("base", "weights", "Apache-2.0"),
                _locked("data", "data", "CC0-1.0"),
            ),
            code={step: digest(f"code {step}") for step in steps},
        )
    )


def _locked(name: str, kind: str, licence: str) -> LockedInput:
    return LockedInput(
        name=name,
        kind=kind,
        source=f"path:./{name}",
        licence=licence,
        tree=digest(name),
        file_count=1,
        size_bytes=1,
        files=(),
    )


def lines(values: list[dict[str, object]]) -> bytes:
    """Canonical JSON lines."""
    return b"".join(strict_json.dumps(value) + b"\n" for value in values)


def inputs() -> dict[str, Files]:
    """The package step's inputs by role, without score and gate, which are made from these."""
    rows, model = holdout(), weights()
    right = [result(each, str(each["answer"])) for each in rows]
    wrong = [result(each, LABELS[0]) for each in rows]
    return {
        "model": {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": model},
        "holdout": {"holdout.jsonl": lines(rows)},
        "evaluation": evaluation(right, len(model)),
        "base": evaluation(wrong, len(model)),
        "story": {
            "kolm.toml": b'version = 1\nname = "tiny"\n',
            "kolm.lock": lock().encode(),
            **derivation_files(derivations()),
        },
    }


def derivation_files(made: list[Derivation]) -> Files:
    """The files of `made` in a story."""
    return {f"derivations/{each.digest.hex}.cbor": each.encode() for each in made}


def smallest(made: dict[str, Files]) -> None:
    """Change the inputs to the fewest there can be: no base was evaluated."""
    del made["base"]
    story = made["story"]
    made["story"] = {name: story[name] for name in ("kolm.toml", "kolm.lock")}
    made["story"] |= derivation_files(few_derivations())


LINEAR = ("model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj")


def quantised_tensors() -> list[tuple[str, str, tuple[int, ...]]]:
    """The tiny model's tensors with rows of INT8, as QUANT-20 has it; the head is tied."""
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for name, dtype, shape in TENSORS:
        if len(shape) == 1:
            found.append((name, dtype, shape))
            continue
        found += [(name, "I8", shape), (f"{name}_scale", "BF16", (shape[0], 1))]
    return [*found, ("lm_head.weight_scale", "BF16", (VOCABULARY, 1))]


def quantised_config() -> dict[str, object]:
    """The configuration that goes with them."""
    grid = SCHEMES["w8a8"].weights
    layers = [(name, grid, "int-quantized", "dynamic") for name in LINEAR]
    layers += [(name, grid, "int-quantized", "") for name in ("model.embed_tokens", "lm_head")]
    return CONFIG | {"quantization_config": to_config(grouped(layers))}


def quantised(made: dict[str, Files]) -> None:
    """Change the inputs to those of a quantised model: what was the model is the full one."""
    tensors = quantised_tensors()
    stored = sum(DTYPE_BYTES[dtype] * _count(shape) for _, dtype, shape in tensors)
    payload = hashlib.shake_128(b"q").digest(stored)
    weights_file = encode_header(data_order(tensors), {"format": "pt"}) + payload
    rows = holdout()
    results = [result(each, str(each["answer"])) for each in rows]
    results[-1] = result(rows[-1], LABELS[0])
    flops, _ = cost()
    cache_row = 2 * 4 * 2 * LAYERS
    figures = {"bytes_per_request": 2 * stored + cache_row * 16, "flops_per_request": flops}
    made["full"] = made["evaluation"]
    made["evaluation"] = {
        "results.jsonl": lines(results),
        "summary.json": strict_json.dumps(summary(results, len(weights_file)) | figures),
    }
    made["model"] = {
        "config.json": json.dumps(quantised_config()).encode(),
        "model.safetensors": weights_file,
    }
    report = {
        "method": QUANTISE["method"],
        "parameters": sum(_count(shape) for _, _, shape in TENSORS),
        "scheme": QUANTISE["scheme"],
        "tensor_bytes": stored,
    }
    made["quantisation"] = {"quantisation.json": strict_json.dumps(report)}
    made["full-model"] = {"model.safetensors": weights()}
    made["story"] = {
        name: made["story"][name] for name in ("kolm.toml", "kolm.lock")
    } | derivation_files(quantised_derivations())


ROUTING = Routing(experts=2, top_k=1, routing="top", rank=2, alpha=4)
ATTACHED = Mixed(routing=ROUTING, target_modules=("q_proj", "up_proj"))


def beside() -> Tensors:
    """The tensors of an adapter beside the tiny model's layers."""
    wanted = ATTACHED.wanted({name: shape for name, _, shape in TENSORS})
    return [(name, "F32", shape) for name, shape in wanted.items()]


def base_id() -> str:
    """The weights id of the tiny model."""
    data, rows = weights(), []
    end = PREFIX_BYTES + header_length(data[:PREFIX_BYTES], len(data))
    header = parse_header(data[PREFIX_BYTES:end], len(data))
    for one in header.tensors:
        payload = data[header.data_start + one.begin : header.data_start + one.end]
        rows.append((one.name, one.dtype, one.shape, blake3(payload).digest()))
    return str(Digest.of_record(weights_record(rows), RecordKind.WEIGHTS))


def attached_derivations() -> list[Derivation]:
    """Everything above the package of a model with an adapter beside its weights."""
    rows, base, tuned, before, _, _, _ = derivations()
    model = node("attach-1", "attach", {}, model=base, adapter=tuned)
    after = node("evaluation", "evaluate", EVALUATE, model=model, holdout=rows)
    scored = node("score", "score", BUDGETS, evaluation=after, base=before, model=model)
    passed = node("gate", "gate", GATE, score=scored, evaluation=after)
    return [rows, base, tuned, before, model, after, scored, passed]


def attached(made: dict[str, Files]) -> None:
    """Change the inputs to those of a model with a mixture beside its weights."""
    _beside(made, ATTACHED, beside())
    _cost_more(made, flops=2 * 8 * sum(_count(shape) for _, _, shape in beside()), moved=0)


VIRTUAL = Virtual(kind=PREFIX, tokens=3, layers=LAYERS, heads=1, width=HIDDEN // 2)


def virtual(made: dict[str, Files]) -> None:
    """Change the inputs to those of a model with virtual tokens before its rows."""
    _beside(made, VIRTUAL, [("prompt_embeddings", "F32", VIRTUAL.shape)])
    cache_row = 2 * 4 * 2 * LAYERS
    _cost_more(made, flops=4 * LAYERS * HIDDEN * 8 * 3, moved=cache_row * 3 * 2)


def _cost_more(made: dict[str, Files], *, flops: int, moved: int) -> None:
    """Add to what a request of 8 tokens read and 2 said costs."""
    summary_of = made["evaluation"]
    told = json.loads(summary_of["summary.json"])
    told["flops_per_request"] += flops
    told["bytes_per_request"] += moved
    summary_of["summary.json"] = strict_json.dumps(told)


GATED = Gated(
    experts=(Expert(rank=2, alpha=4), Expert(rank=1, alpha=3, is_stabilised=True)),
    top_k=1,
    hidden_size=HIDDEN,
    widths=(5,),
    target_modules=("q_proj", "up_proj"),
)


def gated(made: dict[str, Files]) -> None:
    """Change the inputs to those of a model that mixes two adapters, and reads twice for it."""
    wanted = GATED.wanted({name: shape for name, _, shape in TENSORS})
    _beside(made, GATED, [(name, "F32", shape) for name, shape in wanted.items()])
    matrices = sum(_count(shape) for shape in wanted.values() if len(shape) == 2)
    base, pairs, cache_row = 3 * HIDDEN * HIDDEN, 8 * 9 // 2, 2 * 4 * 2 * LAYERS
    flops = 2 * 8 * (base + matrices) + 4 * LAYERS * HIDDEN * pairs
    _cost_more(made, flops=flops, moved=2 * 2 * base + cache_row * (8 + 8))


def _beside(made: dict[str, Files], said: Attached, tensors: Tensors) -> None:
    """Put an adapter beside the model, of which a request reads every number at each token said."""
    numbers = sum(_count(shape) for _, _, shape in tensors)
    payload = hashlib.shake_128(b"a").digest(4 * numbers)
    file = encode_header(data_order(tensors), {"format": "pt"}) + payload
    base = {"stored": "plain", "weights": base_id()}
    made["model"] |= {
        "adapter_config.json": strict_json.dumps(said.to_value()),
        "adapter_model.safetensors": file,
        "base.json": strict_json.dumps(base),
    }
    results = results_of(made["evaluation"])
    told = summary(results, len(made["model"]["model.safetensors"]) + len(file))
    told |= {
        "bytes_per_request": cost()[1] + 2 * 4 * numbers,
        "parameters": told["parameters"] + numbers,
    }
    made["evaluation"]["summary.json"] = strict_json.dumps(told)
    made["story"] = {
        name: made["story"][name] for name in ("kolm.toml", "kolm.lock")
    } | derivation_files(attached_derivations())


def evaluation(results: list[dict[str, object]], weight_bytes: int) -> Files:
    """The files of an evaluation."""
    return {
        "results.jsonl": lines(results),
        "summary.json": strict_json.dumps(summary(results, weight_bytes)),
    }


def results_of(files: Files) -> list[dict[str, object]]:
    """The results in an evaluation's files."""
    return [json.loads(line) for line in files["results.jsonl"].splitlines()]


def make(folder: Path, change: Callable[[dict[str, Files]], None] = lambda _: None) -> Path:
    """The artifact of `inputs`, after `change`, made below `folder` by the real steps."""
    made = inputs()
    change(made)
    for role, files in made.items():
        write_tree(folder / role, files)
    base = ("base",) if "base" in made else ()
    _run(score.run, folder, "score", BUDGETS, ("evaluation", "model", *base))
    _run(gate.run, folder, "gate", GATE, ("score", "evaluation"))
    roles = ("model", "evaluation", "score", "gate", "holdout", "story", *base)
    if "full" in made:
        full = {"evaluation": "full", "model": "full-model", "base": "base"}
        _run(score.run, folder, "full-score", BUDGETS, tuple(full), places=full)
        roles = (*roles, "full", "full-score", "quantisation")
    _run(package.run, folder, "package", {"name": NAME}, roles)
    return folder / "package" / f"{NAME}.kolm"


def package_again(folder: Path, out: Path) -> None:
    """Run the package step once more on what `make` left in `folder`, into `out`."""
    out.mkdir()
    (folder / "package").rename(folder / "before")
    try:
        roles = ("model", "evaluation", "base", "score", "gate", "holdout", "story")
        _run(package.run, folder, "package", {"name": NAME}, roles)
    finally:
        for file in (folder / "package").iterdir():
            file.rename(out / file.name)


def write_tree(folder: Path, files: Files) -> None:
    """Write `files` below `folder`."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _run(
    step: Callable[[StepRequest, Events], None],
    folder: Path,
    name: str,
    params: Mapping[str, str | int],
    roles: tuple[str, ...],
    *,
    places: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run `step` on the folders of `roles`, which are called so unless `places` says where."""
    (folder / name).mkdir()
    fd = os.open(os.devnull, os.O_WRONLY)
    try:
        request = StepRequest(
            step=name,
            params=params,
            inputs={role: str(folder / places.get(role, role)) for role in roles},
            outputs={"out": str(folder / name)},
            scratch=str(folder),
            numerics=Numerics(cls="exact-1"),
            events_fd=fd,
        )
        step(request, Events(fd))
    finally:
        os.close(fd)
