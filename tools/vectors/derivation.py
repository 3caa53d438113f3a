"""Derivations, and what they resolve to."""

from kolm_build.core.derivation import ContentInput, Derivation, OutputInput
from kolm_build.core.digest import Digest
from kolm_build.core.numerics import Numerics, Platform
from tools.vectors._notation import record


def _digest(text: str) -> Digest:
    return Digest.of_blob(text.encode())


_FETCH = Derivation(
    name="base-source",
    step="fetch",
    code=_digest("fetch code"),
    environment=_digest("environment"),
    params=(("source", "https://example.org/model.gguf"),),
    inputs=(),
    outputs=(("out", _digest("model")),),
    numerics=Numerics(cls="exact-1"),
)
_SCRIPT = Derivation(
    name="rows",
    step="script",
    code=_digest("script code"),
    environment=None,
    params=(("count", -3), ("entry", "rows.py")),
    inputs=(("script", ContentInput(content=_digest("rows.py"))),),
    outputs=(("out", None),),
    numerics=Numerics(cls="exact-1"),
)
_TRAIN = Derivation(
    name="train-1",
    step="sft",
    code=_digest("sft code"),
    environment=_digest("environment"),
    params=(("epochs", 2), ("learning_rate", "0.001")),
    inputs=(
        ("model", OutputInput(derivation=_FETCH.digest, output="out")),
        ("train", OutputInput(derivation=_SCRIPT.digest, output="out")),
    ),
    outputs=(("adapter", None), ("trace", None)),
    numerics=Numerics(cls="native-1", seed=7, threads=2),
    platform=Platform(isa="x86_64-v4+avx512_bf16", vendor="AuthenticAMD"),
)


def vectors() -> dict[str, object]:
    content = {need: _digest(f"{need.derivation} {need.output}") for need in _TRAIN.needs}
    resolved = _TRAIN.resolve(content)
    return {
        "derivations": [
            record(one.to_value(), one.encode(), digest=one.digest)
            for one in (_FETCH, _SCRIPT, _TRAIN)
        ],
        "resolved": [
            {
                **record(one.to_value(), one.encode(), digest=one.digest),
                "resolved": str(one.resolved_digest),
            }
            for one in (_FETCH, _SCRIPT, resolved)
        ],
    }
