"""Traces of trainings: their files, and where pairs of them part."""

from kolm_build.core import strict_json
from kolm_build.core.trace import Trace, parting

_STEPS = 5


def _trace(steps: int, *, changed: int | None = None) -> Trace:
    """A trace whose parameters are others from step `changed` on."""
    lines = (
        {
            "loss": float(_STEPS - step).hex(),
            "parameters": f"b3:{step + 64 * (changed is not None and step >= changed):064x}",
            "step": step,
        }
        for step in range(1, steps + 1)
    )
    seed = 8 if changed == 0 else 7
    return Trace(
        start={"numerics": {"class": "portable-1", "seed": seed, "threads": 1}},
        lines=tuple(map(strict_json.dumps, lines)),
    )


def _files(trace: Trace) -> dict[str, str]:
    return {name: data.decode() for name, data in trace.files().items()}


def vectors() -> dict[str, object]:
    """Files, and pairs: one that parts at each step, one that is longer, two that are equal."""
    plain = _trace(_STEPS)
    others = [
        *(_trace(_STEPS, changed=step) for step in range(_STEPS + 1)),
        _trace(_STEPS + 1),
        plain,
    ]
    found = [parting(plain, other) for other in others]
    return {
        "trace": _files(plain),
        "pairs": [
            {"other": _files(other), "parting": None if one is None else one.to_value()}
            for other, one in zip(others, found, strict=True)
        ],
    }
