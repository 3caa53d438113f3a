"""Reading ``[quantise]``: what weights become, by which method, on which rows (spec/recipe.md)."""

from __future__ import annotations

from collections.abc import Mapping

from kolm_build.core.bounded import choice, decimal, integer, texts, unknown_name
from kolm_build.core.derivation import Param
from kolm_build.core.fields import Fields
from kolm_build.core.quantisation import GROUPS, SCHEMES, Scheme
from kolm_build.core.quantise_choices import EMBEDDINGS, METHODS, ORDERS, is_calibrated
from kolm_build.core.sections import Data, Quantise
from kolm_build.errors import InvalidRecordError

CALIBRATING = ("answers", "texts")
"""Schemas whose rows can be read as text: what a model is calibrated on."""

LEAST_BITS = 3
BY_LAYER = 0
TRAIN = "train"
_ALLOW = "allow_below_3_bits"
_CALIBRATION = ("calibration", "calibration_rows", "calibration_length")


def read_quantise(sets: Mapping[str, Data], value: object) -> Quantise:
    """The section `value`.

    Args:
        sets: The recipe's ``[sets]``, which it may be calibrated on.
        value: The section.

    Raises:
        InvalidRecordError: A scheme, method or set is unknown, a value is out of range, a key
            has no use with this scheme and method, or the scheme has too few bits.
    """
    fields = Fields(value)
    name = choice(fields, "scheme", tuple(sorted(SCHEMES)))
    scheme = SCHEMES[name]
    check_bits(name, scheme.weights.bits, allowed=fields.take(_ALLOW, bool, default=False))
    method = choice(fields, "method", METHODS, default="rtn")
    params: dict[str, Param] = {
        "scheme": name,
        "method": method,
        "group": _group(fields, name, scheme),
        "embeddings": choice(fields, "embeddings", EMBEDDINGS, default="keep"),
        "keep": "\n".join(sorted(set(texts(fields, "keep", _glob)))),
        **_method_params(fields, method),
    }
    rows = None
    if is_calibrated(scheme, method):
        rows = _rows(fields, sets)
        params["calibration_rows"] = integer(fields, "calibration_rows", least=1, default=128)
        params["calibration_length"] = integer(fields, "calibration_length", least=8, default=512)
    else:
        _refuse_calibration(fields, name, method)
    fields.done()
    return Quantise(scheme=name, method=method, rows=rows, params=tuple(sorted(params.items())))


def check_bits(scheme: str, bits: int, *, allowed: bool) -> None:
    """Refuse a scheme of fewer bits than most models bear, unless that is asked for.

    Raises:
        InvalidRecordError: It has fewer than `LEAST_BITS`, and they are not allowed.
    """
    if bits < LEAST_BITS and not allowed:
        raise InvalidRecordError(
            f"fewer than {LEAST_BITS} bits a weight ruin most models",
            where="scheme",
            expected=f"a scheme of {LEAST_BITS} bits or more",
            actual=f"{scheme!r}, of {bits}",
            advice=f"If you mean it: {_ALLOW} = true under [quantise].",
        )


def _group(fields: Fields, name: str, scheme: Scheme) -> int:
    """The columns that share a scale, where the scheme leaves them open; 0: the layer decides."""
    if not scheme.is_grouped and fields.has("group"):
        raise InvalidRecordError(
            f"the scheme {name} leaves no choice of groups",
            where="group",
            expected="no such key, or a scheme such as w4a16",
        )
    group = integer(fields, "group", least=0, default=0)
    if group not in (BY_LAYER, *GROUPS):
        raise InvalidRecordError(
            "not a size of a group",
            where="group",
            expected="32, 64 or 128; 0 for the largest that divides each layer",
            actual=str(group),
        )
    return group


def _method_params(fields: Fields, method: str) -> Mapping[str, Param]:
    """The parameters of `method` alone; of another method's any is unknown."""
    if method == "gptq":
        return {
            "damping": _share(fields, "damping", default="0.01"),
            "act_order": choice(fields, "act_order", ORDERS, default="static"),
        }
    if method == "awq":
        return {"grid": integer(fields, "grid", least=1, most=1000, default=20)}
    if method == "smoothquant":
        return {"strength": _share(fields, "strength", default="0.5")}
    return {}


def _share(fields: Fields, name: str, *, default: str) -> str:
    """A decimal number above 0 and at most 1."""
    share = decimal(fields, name, most="1", default=default)
    if share == "0":
        raise InvalidRecordError(
            "out of range", where=name, expected="above 0, at most 1", actual="0"
        )
    return share


def _rows(fields: Fields, sets: Mapping[str, Data]) -> str:
    """The node of the rows under ``calibration``: those of [data], or a set's."""
    name = fields.text("calibration", default=TRAIN)
    if name == TRAIN:
        return "dataset"
    if name not in sets:
        raise unknown_name("set of rows", name, (TRAIN, *sets), where="calibration")
    if sets[name].schema not in CALIBRATING:
        raise InvalidRecordError(
            "rows that a model is not calibrated on",
            where="calibration",
            expected="a set of the schema " + " or ".join(CALIBRATING),
            actual=f"{name!r}, of the schema {sets[name].schema}",
        )
    return f"dataset-{name}"


def _refuse_calibration(fields: Fields, scheme: str, method: str) -> None:
    for key in _CALIBRATION:
        if fields.has(key):
            raise InvalidRecordError(
                "nothing is calibrated here",
                where=key,
                expected="no such key",
                actual=f"method {method}, scheme {scheme}",
                advice="gptq, awq, smoothquant and schemes with static activations are calibrated.",
            )


def _glob(text: str) -> str:
    if not text or any(sign.isspace() for sign in text):
        raise InvalidRecordError("not a layer pattern", expected="such as model.layers.0.*")
    return text
