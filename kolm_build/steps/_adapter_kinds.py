"""Kinds of adapters: what their configuration says, and the weights that they make (ADPT-3).

Each kind is a literal record. Its `weight` is the merge: a function of the base's matrix and the
adapter's tensors for that layer, all float32. Nothing here needs PEFT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from kolm_build.errors import InvalidRecordError
from kolm_build.steps._cayley import block_diagonal, butterfly, cayley, skew_of_upper

Parts = Mapping[str, torch.Tensor]
"""An adapter's tensors of one layer, by the last part of their names."""
Settings = Mapping[str, int | bool | tuple[str, ...]]
"""What a configuration says beside what is fixed for its kind."""
Shape = tuple[int, ...]

_PLAIN: Mapping[str, object] = {
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "task_type": "CAUSAL_LM",
}
_LAYER = r"base_model\.model\.(?P<module>.+)\."


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of adapter.

    Attributes:
        fixed: What its configuration says, always.
        settings: What else it says: names and their types; a tuple is a sorted list of layers.
        name: Matches a tensor's name, with the groups ``module`` (empty for a tensor that all
            layers share) and ``part``.
        parts: The parts that a layer needs, shared ones among them, given those that it has.
        shape: The shape of the matrix that a layer's parts fit.
        weight: The matrix that the adapter makes of the base's, float32.
        scales_bias: The part that the layer's bias is multiplied by, if the layer has one.
    """

    fixed: Mapping[str, object]
    settings: Mapping[str, type]
    name: re.Pattern[str]
    parts: Callable[[Settings, Parts], frozenset[str]]
    shape: Callable[[str, Parts, Settings], Shape]
    weight: Callable[[torch.Tensor, Parts, Settings], torch.Tensor]
    scales_bias: str = ""


def _always(*names: str) -> Callable[[Settings, Parts], frozenset[str]]:
    """The parts `names`, whatever the settings are."""
    return lambda _settings, _found: frozenset(names)


# ---------------------------------------------------------------------------- low-rank changes


def lora_scale(settings: Settings) -> float:
    """What B A is multiplied by: alpha / r, or alpha / sqrt(r) (arXiv:2312.03732, theorem 3.2)."""
    rank, alpha = _number(settings, "r"), _number(settings, "lora_alpha")
    return alpha / (math.sqrt(rank) if settings["use_rslora"] else rank)


def lora_delta(parts: Parts, settings: Settings) -> torch.Tensor:
    """Scaled B A (arXiv:2106.09685, equation 3)."""
    return (parts["lora_B.weight"] @ parts["lora_A.weight"]) * lora_scale(settings)


def _lora_weight(base: torch.Tensor, parts: Parts, settings: Settings) -> torch.Tensor:
    """W + scaled B A; for DoRA m V / ||V|| with V that sum (arXiv:2402.09353, equation 5)."""
    whole = base + lora_delta(parts, settings)
    if not settings["use_dora"]:
        return whole
    lengths = torch.linalg.vector_norm(whole, dim=1)
    return (parts[MAGNITUDE] / lengths)[:, None] * whole


def _lora_parts(settings: Settings, found: Parts) -> frozenset[str]:
    del found
    both = {"lora_A.weight", "lora_B.weight"}
    return frozenset(both | ({MAGNITUDE} if settings["use_dora"] else set()))


def _lora_shape(module: str, parts: Parts, settings: Settings) -> Shape:
    rank = _number(settings, "r")
    down, up = parts["lora_A.weight"], parts["lora_B.weight"]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != rank or up.shape[1] != rank:
        raise InvalidRecordError(
            "the matrices do not have the adapter's rank",
            where=module,
            expected=str(rank),
            actual=f"A {tuple(down.shape)}, B {tuple(up.shape)}",
        )
    _check_shapes(module, parts, {MAGNITUDE: (up.shape[0],)})
    return up.shape[0], down.shape[1]


MAGNITUDE = "lora_magnitude_vector"

LORA = Kind(
    fixed={**_PLAIN, "peft_type": "LORA"},
    settings={
        "lora_alpha": int,
        "r": int,
        "target_modules": tuple,
        "use_dora": bool,
        "use_rslora": bool,
    },
    name=re.compile(_LAYER + rf"(?P<part>lora_[AB]\.weight|{MAGNITUDE})"),
    parts=_lora_parts,
    shape=_lora_shape,
    weight=_lora_weight,
)


# ---------------------------------------------------------------------------- shared projections


def _vera_weight(base: torch.Tensor, parts: Parts, settings: Settings) -> torch.Tensor:
    """W + diag(b) B diag(d) A with slices of the shared A and B (arXiv:2310.11454, equation 2)."""
    del settings
    rows, columns = base.shape
    up = parts["vera_lambda_b"][:, None] * parts["vera_B"][:rows]
    down = parts["vera_lambda_d"][:, None] * parts["vera_A"][:, :columns]
    return base + up @ down


def _vera_shape(module: str, parts: Parts, settings: Settings) -> Shape:
    rank, rows = _number(settings, "r"), len(parts["vera_lambda_b"])
    down, up = parts["vera_A"], parts["vera_B"]
    _check_shapes(
        module,
        parts,
        {
            "vera_A": (rank, down.shape[-1]),
            "vera_B": (up.shape[0], rank),
            "vera_lambda_b": (rows,),
            "vera_lambda_d": (rank,),
        },
    )
    return rows, -1  # the columns are the layer's, up to those of A


VERA = Kind(
    fixed={**_PLAIN, "peft_type": "VERA", "save_projection": True},
    settings={"projection_prng_key": int, "r": int, "target_modules": tuple},
    name=re.compile(
        rf"base_model\.(?P<shared>vera_[AB])|{_LAYER}(?P<part>vera_lambda_[bd])",
    ),
    parts=_always("vera_A", "vera_B", "vera_lambda_b", "vera_lambda_d"),
    shape=_vera_shape,
    weight=_vera_weight,
)


# ---------------------------------------------------------------------------- scaled activations


def _ia3_weight(base: torch.Tensor, parts: Parts, settings: Settings) -> torch.Tensor:
    """Rows scaled by l, or columns in feed-forward layers (arXiv:2205.05638, section 3.3)."""
    del settings
    return base * parts["ia3_l"]


def _ia3_shape(module: str, parts: Parts, settings: Settings) -> Shape:
    last = module.rpartition(".")[2]
    scale = parts["ia3_l"]
    if last in _names(settings, "feedforward_modules"):
        _check_shapes(module, parts, {"ia3_l": (1, scale.shape[-1])})
        return -1, scale.shape[-1]
    _check_shapes(module, parts, {"ia3_l": (scale.shape[0], 1)})
    return scale.shape[0], -1


IA3 = Kind(
    fixed={key: _PLAIN[key] for key in _PLAIN if key != "bias"} | {"peft_type": "IA3"},
    settings={"feedforward_modules": tuple, "target_modules": tuple},
    name=re.compile(_LAYER + r"(?P<part>ia3_l)"),
    parts=_always("ia3_l"),
    shape=_ia3_shape,
    weight=_ia3_weight,
    scales_bias="ia3_l",
)


# ---------------------------------------------------------------------------- rotations


def _oft_weight(base: torch.Tensor, parts: Parts, settings: Settings) -> torch.Tensor:
    """W R' with R the orthogonal blocks (arXiv:2306.07280)."""
    blocks = cayley(skew_of_upper(parts["oft_R.weight"], _number(settings, "oft_block_size")))
    return base @ block_diagonal(blocks).T


def _oft_shape(module: str, parts: Parts, settings: Settings) -> Shape:
    size = _number(settings, "oft_block_size")
    blocks = len(parts["oft_R.weight"])
    _check_shapes(module, parts, {"oft_R.weight": (blocks, size * (size - 1) // 2)})
    return -1, blocks * size


OFT = Kind(
    fixed={
        **_PLAIN,
        "block_share": False,
        "coft": False,
        "peft_type": "OFT",
        "r": 0,
        "use_cayley_neumann": False,
    },
    settings={"oft_block_size": int, "target_modules": tuple},
    name=re.compile(_LAYER + r"(?P<part>oft_R\.weight)"),
    parts=_always("oft_R.weight"),
    shape=_oft_shape,
    weight=_oft_weight,
)


def boft_rotation(parts: Parts) -> torch.Tensor:
    """The product of the butterfly factors (arXiv:2311.06243), orthogonal."""
    data = parts["boft_R"]
    factors, count, size, _ = data.shape
    flat = data.reshape(factors * count, size, size)
    skew = 0.5 * (flat - flat.transpose(1, 2))
    return butterfly(cayley(skew).reshape(factors, count, size, size))


def _boft_weight(base: torch.Tensor, parts: Parts, settings: Settings) -> torch.Tensor:
    """The rows of W R' scaled by s (arXiv:2311.06243)."""
    del settings
    return (base @ boft_rotation(parts).T) * parts["boft_s"]


def _boft_shape(module: str, parts: Parts, settings: Settings) -> Shape:
    size = _number(settings, "boft_block_size")
    factors = _number(settings, "boft_n_butterfly_factor")
    data, rows = parts["boft_R"], len(parts["boft_s"])
    count = data.shape[1] if data.ndim == 4 else 0
    _check_shapes(module, parts, {"boft_R": (factors, count, size, size), "boft_s": (rows, 1)})
    return rows, count * size


BOFT = Kind(
    fixed={**_PLAIN, "boft_block_num": 0, "peft_type": "BOFT"},
    settings={"boft_block_size": int, "boft_n_butterfly_factor": int, "target_modules": tuple},
    name=re.compile(_LAYER + r"(?P<part>boft_[Rs])"),
    parts=_always("boft_R", "boft_s"),
    shape=_boft_shape,
    weight=_boft_weight,
)

# ---------------------------------------------------------------------------- other products

_PRODUCT: Mapping[str, object] = {
    "inference_mode": True,
    "task_type": "CAUSAL_LM",
    "use_effective_conv2d": False,
}
_RANK_AND_SCALE: Mapping[str, type] = {"alpha": int, "r": int, "target_modules": tuple}


def _scale(settings: Settings) -> float:
    return _number(settings, "alpha") / _number(settings, "r")


def _loha_weight(base: torch.Tensor, parts: Parts, settings: Settings) -> torch.Tensor:
    """W + s (A1 B1) * (A2 B2), elementwise (arXiv:2108.06098)."""
    one, other = (parts[f"hada_w{at}_a"] @ parts[f"hada_w{at}_b"] for at in (1, 2))
    return base + one * other * _scale(settings)


def _loha_shape(module: str, parts: Parts, settings: Settings) -> Shape:
    rank = _number(settings, "r")
    rows, columns = parts["hada_w1_a"].shape[0], parts["hada_w1_b"].shape[-1]
    wanted = {f"hada_w{at}_a": (rows, rank) for at in (1, 2)}
    wanted |= {f"hada_w{at}_b": (rank, columns) for at in (1, 2)}
    _check_shapes(module, parts, wanted)
    return rows, columns


LOHA = Kind(
    fixed={**_PRODUCT, "peft_type": "LOHA"},
    settings=_RANK_AND_SCALE,
    name=re.compile(_LAYER + r"(?P<part>hada_w[12]_[ab])"),
    parts=_always("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    shape=_loha_shape,
    weight=_loha_weight,
)


def _lokr_parts(settings: Settings, found: Parts) -> frozenset[str]:
    """The second factor is whole where its rank would not be lower."""
    del settings
    whole = "lokr_w2" in found
    return frozenset({"lokr_w1", *(("lokr_w2",) if whole else ("lokr_w2_a", "lokr_w2_b"))})


def _lokr_second(parts: Parts) -> torch.Tensor:
    return parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]


def _lokr_weight(base: torch.Tensor, parts: Parts, settings: Settings) -> torch.Tensor:
    """W + s C x (A B), Kronecker's product (arXiv:2309.14859)."""
    return base + torch.kron(parts["lokr_w1"], _lokr_second(parts).contiguous()) * _scale(settings)


def _lokr_shape(module: str, parts: Parts, settings: Settings) -> Shape:
    rank = _number(settings, "r")
    if "lokr_w2" not in parts:
        rows, columns = parts["lokr_w2_a"].shape[0], parts["lokr_w2_b"].shape[-1]
        wanted = {"lokr_w2_a": (rows, rank), "lokr_w2_b": (rank, columns)}
        _check_shapes(module, parts, wanted)
    else:
        rows, columns = parts["lokr_w2"].shape
    first = parts["lokr_w1"]
    return first.shape[0] * rows, first.shape[-1] * columns


LOKR = Kind(
    fixed={
        **_PRODUCT,
        "decompose_both": False,
        "decompose_factor": -1,
        "peft_type": "LOKR",
    },
    settings=_RANK_AND_SCALE,
    name=re.compile(_LAYER + r"(?P<part>lokr_w1|lokr_w2(?:_[ab])?)"),
    parts=_lokr_parts,
    shape=_lokr_shape,
    weight=_lokr_weight,
)


def _hra_weight(base: torch.Tensor, parts: Parts, settings: Settings) -> torch.Tensor:
    """W H_1 ... H_r with H_i = I - 2 u_i u_i', |u_i| = 1 (arXiv:2405.17484)."""
    del settings
    vectors = parts["hra_u"] / torch.linalg.vector_norm(parts["hra_u"], dim=0)
    for at in range(vectors.shape[1]):
        one = vectors[:, at : at + 1]
        base = base - 2 * (base @ one) @ one.T
    return base


def _hra_shape(module: str, parts: Parts, settings: Settings) -> Shape:
    inputs = parts["hra_u"].shape[0]
    _check_shapes(module, parts, {"hra_u": (inputs, _number(settings, "r"))})
    return -1, inputs


HRA = Kind(
    fixed={
        "apply_GS": False,
        "bias": "none",
        "inference_mode": True,
        "peft_type": "HRA",
        "task_type": "CAUSAL_LM",
    },
    settings={"r": int, "target_modules": tuple},
    name=re.compile(_LAYER + r"(?P<part>hra_u)"),
    parts=_always("hra_u"),
    shape=_hra_shape,
    weight=_hra_weight,
)

KINDS: Mapping[str, Kind] = {
    str(kind.fixed["peft_type"]): kind for kind in (BOFT, HRA, IA3, LOHA, LOKR, LORA, OFT, VERA)
}


# ---------------------------------------------------------------------------- reading settings


def _number(settings: Settings, name: str) -> int:
    value = settings[name]
    assert isinstance(value, int)
    return value


def _names(settings: Settings, name: str) -> tuple[str, ...]:
    value = settings[name]
    assert isinstance(value, tuple)
    return value


def _check_shapes(module: str, parts: Parts, wanted: Mapping[str, Shape]) -> None:
    for part, shape in wanted.items():
        if part in parts and tuple(parts[part].shape) != shape:
            raise InvalidRecordError(
                "an adapter's tensor has another shape than its settings ask for",
                where=f"{module}.{part}",
                expected=str(shape),
                actual=str(tuple(parts[part].shape)),
            )
