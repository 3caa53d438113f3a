"""The step ``combine`` on model folders: what it takes, refuses and writes."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from kolm_build.core.catalogue.algorithm import read_parameters
from kolm_build.core.catalogue.merging import ROWS
from kolm_build.core.fields import Fields
from kolm_build.core.numerics import Numerics
from kolm_build.core.request import Circumstances, StepRequest
from kolm_build.numerics.kernels import LIBRARY
from kolm_build.steps.combine import METHODS, parse_method
from tests.steps_ml.calling import files_of, run_step
from tests.support.models import ROOT, tiny_llama

WEIGHTS = "model.safetensors"
PORTABLE = (1, None)
CHANGED = "model.layers.0.mlp.up_proj.weight"


def write_model(folder, tensors, source):
    """`folder`, made: the model `source` with other tensors."""
    folder.mkdir()
    for name, data in files_of(source).items():
        if name != WEIGHTS:
            (folder / name).write_bytes(data)
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.fixture
def base(tmp_path):
    return tiny_llama(tmp_path / "base")


@pytest.fixture
def models(tmp_path, base):
    """Three models near the base, and nearer one another; the norms are left as they are."""
    tensors, made = {n: t + 0.02 * (t.ndim > 1) for n, t in load_file(base / WEIGHTS).items()}, []
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        near = {
            name: one if one.ndim < 2 else one + torch.randn(one.shape, generator=generator) / 50
            for name, one in tensors.items()
        }
        made.append(write_model(tmp_path / f"model-{number}", near, base))
    return made


def inputs(base, models):
    return {"model": base} | {f"models-{n}": one for n, one in enumerate(models, 1)}


def combine(tmp_path, base, models, algorithm="soup", *, seed=0, **own):
    return run_step(
        "combine",
        tmp_path,
        inputs=inputs(base, models),
        params={"algorithm": algorithm, **own},
        portable=PORTABLE,
        seed=seed,
    )


def change_json(path, **changes):
    value = json.loads(path.read_bytes())
    value |= {key: new for key, new in changes.items() if new is not None}
    path.write_text(json.dumps({k: v for k, v in value.items() if changes.get(k, v) is not None}))


@pytest.mark.parametrize("algorithm", sorted(METHODS))
def test_every_algorithm_makes_a_model_from_models(tmp_path, base, models, algorithm):
    """MERGE-1, MERGE-3: the base's files, names, shapes and dtypes; the norms nobody changed."""
    given = models[:2] if algorithm == "slerp" else models
    ran = combine(tmp_path, base, given, algorithm)
    found, wanted = load_file(ran.folder("model") / WEIGHTS), load_file(base / WEIGHTS)
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {
        n: (t.shape, t.dtype) for n, t in wanted.items()
    }
    same = {name for name in found if torch.equal(found[name], wanted[name])}
    assert {name for name in found if found[name].ndim < 2} <= same
    assert CHANGED not in same
    others = {name: data for name, data in files_of(base).items() if name != WEIGHTS}
    assert {n: d for n, d in files_of(ran.folder("model")).items() if n != WEIGHTS} == others
    progress = [event for event in ran.events if event["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"]


def run_all_in_one_process(place, base, models, *, threads, isa):
    """Every algorithm as a step, one after another in one fresh process; its files by algorithm."""
    place.mkdir()
    fd, requests, outputs = os.open(place / "events", os.O_CREAT | os.O_WRONLY), [], {}
    for algorithm in sorted(METHODS):
        given = models[:2] if algorithm == "slerp" else models
        outputs[algorithm] = place / algorithm
        outputs[algorithm].mkdir()
        request = StepRequest(
            step="combine",
            params={"algorithm": algorithm},
            inputs={
                role: str(path)
                for role, path in inputs(base, given[::-1] if threads > 1 else given).items()
            },
            outputs={"model": str(outputs[algorithm])},
            scratch=str(place),
            numerics=Numerics(cls="portable-1", seed=4),
            events_fd=fd,
            circumstances=Circumstances(kernels=str(LIBRARY), threads=threads, isa=isa),
        )
        requests.append(place / f"{algorithm}.request")
        requests[-1].write_bytes(request.encode())
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        "from kolm_build.steps.combine import main; "
        "sys.exit(any(main(['step.py', one]) for one in sys.argv[1:]))"
    )
    command = [sys.executable, "-s", "-P", "-B", "-c", code, *map(str, requests)]
    env = {
        "PYTHONHASHSEED": str(threads),
        "ATEN_CPU_CAPABILITY": "default" if isa else "avx2",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    subprocess.run(command, pass_fds=[fd], cwd=place, env=env, check=True)
    os.close(fd)
    return {algorithm: files_of(folder) for algorithm, folder in outputs.items()}


@pytest.mark.ml
def test_process_threads_instruction_set_and_order_change_no_byte(tmp_path, base, models):
    """MERGE-4, MERGE-6: every algorithm in two fresh processes; slerp's t is a half."""
    one = run_all_in_one_process(tmp_path / "one", base, models, threads=1, isa=None)
    other = run_all_in_one_process(tmp_path / "other", base, models, threads=2, isa="baseline")
    assert one == other
    assert len({files[WEIGHTS] for files in one.values()}) == len(METHODS)


def test_a_sum_is_rounded_once_to_the_dtype_of_the_base(tmp_path, base, models):
    """MERGE-3: bfloat16 in, float32 inside, bfloat16 out."""
    folders = []
    for number, folder in enumerate([base, *models]):
        tensors = {name: one.bfloat16() for name, one in load_file(folder / WEIGHTS).items()}
        folders.append(write_model(tmp_path / f"half-{number}", tensors, base))
    ran = combine(tmp_path, folders[0], folders[1:], "task-arithmetic", weights="0.3", scale="0.7")
    found = load_file(ran.folder("model") / WEIGHTS)[CHANGED]
    first, *rest = (load_file(folder / WEIGHTS)[CHANGED].double() for folder in folders)
    wanted = first + 0.7 * 0.3 * sum(one - first for one in rest)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted.bfloat16())


def test_models_of_another_dtype_are_merged_in_the_base_s(tmp_path, base, models):
    """MERGE-3."""
    half = {name: one.half() for name, one in load_file(base / WEIGHTS).items()}
    ran = combine(tmp_path, write_model(tmp_path / "half", half, base), models[:1])
    found, wanted = (load_file(at / WEIGHTS) for at in (ran.folder("model"), models[0]))
    assert all(torch.equal(found[name], wanted[name].half()) for name in wanted)


def test_another_seed_draws_other_elements(tmp_path, base, models):
    """MERGE-6."""
    found = [
        files_of(combine(tmp_path, base, models, "dare-ties", seed=seed).folder("model"))[WEIGHTS]
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("algorithm", "count", "params", "where"),
    [
        ("slerp", 1, {}, "inputs.models"),
        ("slerp", 3, {}, "inputs.models"),
        ("model-stock", 1, {}, "inputs.models"),
        ("soup", 0, {}, "inputs.models"),
        ("ties", 0, {}, "inputs.models"),
        ("soup", 3, {"weights": "1,2"}, "weights"),
        ("soup", 2, {"weights": "0,0"}, "weights"),
        ("soup", 2, {"weights": "1,-0.5"}, "weights"),
        ("soup", 2, {"weights": "1,"}, "weights"),
        ("soup", 2, {"weights": "nan"}, "weights"),
        ("ties", 2, {"weights": "-1"}, "weights"),
        ("ties", 2, {"density": "0"}, "density"),
        ("ties", 2, {"density": "1.5"}, "density"),
        ("ties", 2, {"scale": "-1"}, "scale"),
        ("ties", 2, {"gamma": "0.1"}, "gamma"),
        ("slerp", 2, {"t": "1.01"}, "t"),
        ("slerp", 2, {"weights": "1,1"}, "weights"),
        ("della", 2, {"density": "0.1", "epsilon": "0.3"}, "epsilon"),
        ("breadcrumbs", 2, {"density": "0.9", "gamma": "0.2"}, "gamma"),
        ("karcher", 2, {}, "algorithm"),
    ],
)
def test_parameters_that_cannot_be_meant_are_refused(
    tmp_path, base, models, *, algorithm, count, params, where
):
    """MERGE-18: before anything is read or written."""
    ran = combine(tmp_path, base, models[:count], algorithm, **params)
    refusal = ran.refusal()
    assert refusal["where"] == where
    assert refusal["code"] == "input.invalid"
    assert not files_of(ran.outputs["model"])


def test_inputs_with_a_gap_or_another_name_are_refused(tmp_path, base, models):
    """MERGE-18."""
    for wrong in ({"models-2": models[0]}, {"models-1": models[0], "teacher": models[1]}):
        ran = run_step(
            "combine",
            tmp_path,
            inputs={"model": base} | wrong,
            params={"algorithm": "soup"},
            portable=PORTABLE,
        )
        assert ran.refusal()["where"] == "inputs"


def other_shape(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors[CHANGED] = tensors[CHANGED][:-1].clone()
    save_file(tensors, folder / WEIGHTS)


def tensor_less(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors[CHANGED]
    save_file(tensors, folder / WEIGHTS)


def tensor_more(folder):
    save_file(load_file(folder / WEIGHTS) | {"lm_tail.weight": torch.zeros(3)}, folder / WEIGHTS)


def other_architecture(folder):
    change_json(folder / "config.json", model_type="qwen2")


def other_base_of_angles(folder):
    change_json(folder / "config.json", rope_theta=1.5)


def other_vocabulary(folder):
    path = folder / "tokenizer.json"
    table = json.loads(path.read_bytes())
    first, second, *_ = sorted(table["model"]["vocab"])
    ids = table["model"]["vocab"]
    ids[first], ids[second] = ids[second], ids[first]
    path.write_text(json.dumps(table))


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def without_weights(folder):
    (folder / WEIGHTS).unlink()


def cut_short(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-7])


@pytest.mark.parametrize(
    ("spoil", "file", "where"),
    [
        (other_shape, WEIGHTS, CHANGED),
        (tensor_less, WEIGHTS, CHANGED),
        (tensor_more, WEIGHTS, "lm_tail.weight"),
        (other_architecture, "config.json", "model_type"),
        (other_base_of_angles, "config.json", "rope_theta"),
        (other_vocabulary, "tokenizer.json", "model.vocab."),
        (without_tokenizer, "tokenizer.json", None),
        (without_weights, WEIGHTS, None),
        (cut_short, WEIGHTS, None),
    ],
)
def test_a_model_of_another_kind_is_refused_by_name(tmp_path, base, models, *, spoil, file, where):
    """MERGE-2, MERGE-18: the input, the file and the place in it, expected and actual."""
    spoil(models[1])
    ran = combine(tmp_path, base, models, "ties")
    refusal = ran.refusal()
    assert refusal["file"] == f"models-2/{file}"
    if where is not None:
        assert refusal["where"].startswith(where)
        assert "expected" in refusal
        assert "actual" in refusal
    assert not files_of(ran.outputs["model"])


def test_keys_that_say_nothing_of_the_weights_may_differ(tmp_path, base, models):
    """MERGE-2: and the merged model has the base's."""
    change_json(models[0] / "config.json", eos_token_id=7, use_cache=False)
    ran = combine(tmp_path, base, models)
    assert (ran.folder("model") / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize("algorithm", ["soup", "ties", "slerp", "model-stock"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_and_nothing_is_written(
    tmp_path, base, models, algorithm, value
):
    """MERGE-19: named by its input and tensor; the half-written file is taken away."""
    tensors = load_file(models[1] / WEIGHTS)
    tensors[CHANGED][3, 4] = value
    save_file(tensors, models[1] / WEIGHTS)
    ran = combine(tmp_path, base, models[:2], algorithm)
    refusal = ran.refusal()
    assert (refusal["file"], refusal["where"]) == (f"models-2/{WEIGHTS}", CHANGED)
    assert not files_of(ran.outputs["model"])


def test_a_merge_that_overflows_is_refused(tmp_path, base, models):
    """MERGE-19: finite in, not finite out."""
    half = {name: one.half() for name, one in load_file(base / WEIGHTS).items()}
    far = dict(half)
    far[CHANGED] = torch.full_like(half[CHANGED], 60000.0)
    folders = [write_model(tmp_path / name, t, base) for name, t in (("b", half), ("f", far))]
    ran = combine(tmp_path, folders[0], folders[1:], "task-arithmetic", scale="2")
    assert ran.refusal()["where"] == CHANGED
    assert not files_of(ran.outputs["model"])


def test_the_catalogue_and_the_step_say_the_same():
    """MERGE-1: the same algorithms; a recipe's parameters, defaults too, are the step's."""
    assert {row.id for row in ROWS} == set(METHODS)
    for row in ROWS:
        silent = dict(read_parameters(row.parameters, Fields({})))
        parsed = parse_method({"algorithm": row.id, **silent}, 2)
        assert parsed == parse_method({"algorithm": row.id}, 2)
        assert (row.step, row.trains, row.schema) == ("combine", False, "none")


def test_a_merge_never_sees_the_models_position():
    """MERGE-6: no method's module counts positions or reads a clock or a global generator."""
    for path in sorted((ROOT / "kolm_build/steps/merging").glob("*.py")):
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        names = {ast.unparse(call.func) for call in calls}
        assert not names & {"torch.manual_seed", "torch.rand", "enumerate", "hash", "id"}, path.name


def test_combining_imports_neither_transformers_nor_peft():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kolm_build.steps.combine; "
        "sys.exit(any(name in sys.modules for name in ('transformers', 'peft', 'trl')))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
