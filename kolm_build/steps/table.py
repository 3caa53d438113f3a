"""The steps there are: pure data, handed to the engine by the surface (spec/steps.md).

No step is imported here: the engine starts each one as a process of its own, from a code tree
that holds only what that step's module can import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

EXACT = "exact-1"
INHERIT = "inherit"
TRAINED = ("adapter", "metrics", "trace")
"""What a training gives; one of every weight gives ``model`` in place of ``adapter``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec:
    """What the engine must know of a step to run it.

    Attributes:
        module: Its module in `kolm_build.steps`.
        outputs: The names of its outputs, each a folder.
        network: Whether its sandbox has a network; then every output must be fixed by a digest.
        environment: Whether it sees the installed distributions; if not, only the standard
            library, so that a change of environment does not rebuild it.
        numerics: ``exact-1`` where no floating point decides a byte, else ``inherit``: the
            recipe's class.
    """

    module: str
    outputs: tuple[str, ...] = ("out",)
    network: bool = False
    environment: bool = True
    numerics: str = EXACT


SUPERVISED = ("curriculum", "dft", "label-smoothing", "neftune", "texts", "weighted-sft")
"""Objectives over answers and texts, beside `sft`."""

PREFERENCE = (
    "alphapo",
    "aot",
    "aot-unpaired",
    "apo-down",
    "apo-zero",
    "apo-zero-unpaired",
    "bco",
    "bco-pair",
    "cdpo",
    "cpo",
    "discopop",
    "dpo",
    "dpop",
    "exo",
    "f-dpo",
    "ipo",
    "kto",
    "ld-dpo",
    "lndpo",
    "nca",
    "odpo",
    "orpo",
    "rdpo",
    "rpo",
    "rso",
    "simpo",
    "slic",
    "sppo",
    "wpo",
)
"""Objectives over pairs of answers, and over answers with a verdict."""

DISTILLATION = (
    "gkd",
    "kd",
    "kd-cached",
    "kd-hidden",
    "kd-jeffreys",
    "kd-jsd",
    "kd-reverse",
    "kd-skew",
    "kd-skew-reverse",
    "kd-tvd",
    "minilm",
    "minillm",
    "rationale",
    "seq-kd",
    "uld",
)
"""Objectives that learn from another model."""


REINFORCEMENT = (
    "bnpo",
    "cispo",
    "dapo",
    "dr-grpo",
    "grpo",
    "gspo",
    "nash-md",
    "online-dpo",
    "ppo",
    "prm",
    "raft",
    "reinforce-pp",
    "remax",
    "reward-bt",
    "rloo",
    "self-rewarding",
    "spin",
    "star",
    "xpo",
)
"""Objectives over what a policy says itself, and reward models."""


def _trained(objectives: Sequence[str]) -> Mapping[str, StepSpec]:
    """The steps of objectives, each the module of its name."""
    return {
        name: StepSpec(
            module=f"objectives.{name.replace('-', '_')}", outputs=TRAINED, numerics=INHERIT
        )
        for name in objectives
    }


STEPS: Mapping[str, StepSpec] = MappingProxyType(
    {
        "fetch": StepSpec(module="fetch", network=True),
        "script": StepSpec(module="script", environment=False),
        "import-gguf": StepSpec(module="import_gguf"),
        "import-model": StepSpec(module="import_model"),
        "dataset": StepSpec(module="dataset", outputs=("train", "holdout", "compared", "report")),
        "sft": StepSpec(module="sft", outputs=TRAINED, numerics=INHERIT),
        **_trained(SUPERVISED),
        **_trained(PREFERENCE),
        **_trained(DISTILLATION),
        "teacher-logits": StepSpec(module="teacher_logits", numerics=INHERIT),
        "federated-start": StepSpec(module="federated.start", outputs=("adapter", "state")),
        "federated-update": StepSpec(
            module="federated.update",
            outputs=("card", "control", "metrics", "trace", "update"),
            numerics=INHERIT,
        ),
        "federated-seal": StepSpec(module="federated.seal"),
        "federated-aggregate": StepSpec(
            module="federated.aggregate", outputs=("adapter", "state", "summary")
        ),
        **_trained(REINFORCEMENT),
        "merge": StepSpec(module="merge", numerics=INHERIT),
        "attach": StepSpec(module="attach"),
        "combine": StepSpec(module="combine", outputs=("model",), numerics=INHERIT),
        "quantise": StepSpec(module="quantise", outputs=("out", "report"), numerics=INHERIT),
        "evaluate": StepSpec(module="evaluate", numerics=INHERIT),
        "score": StepSpec(module="score", environment=False),
        "gate": StepSpec(module="gate", environment=False),
        "package": StepSpec(module="package"),
        "export-gguf": StepSpec(module="export_gguf"),
        "export-modelpack": StepSpec(module="export_modelpack"),
        "export-onnx": StepSpec(module="export_onnx", numerics=INHERIT),
        "export-safetensors": StepSpec(module="export_safetensors"),
    }
)
