"""The words of ``[quantise]``, in a recipe and in what its step is asked (spec/quantization.md)."""

from __future__ import annotations

from typing import Literal, get_args

from kolm_build.core.quantisation import Scheme

Method = Literal["rtn", "gptq", "awq", "smoothquant"]
"""How codes are chosen; ``rtn`` is round to nearest."""

Embeddings = Literal["keep", "int8", "int4"]
"""What becomes of the embedding and of the head."""

Order = Literal["static", "none"]
"""GPTQ's order of columns: those with large inputs first, or as they lie."""

METHODS: tuple[Method, ...] = get_args(Method)
EMBEDDINGS: tuple[Embeddings, ...] = get_args(Embeddings)
ORDERS: tuple[Order, ...] = get_args(Order)


def is_calibrated(scheme: Scheme, method: str) -> bool:
    """Whether rows are needed: by the method, or for the scales of activations."""
    return method != "rtn" or scheme.activations == "static"
