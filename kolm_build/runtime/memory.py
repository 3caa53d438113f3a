"""Memory that was needed for a moment, given back before the weights come in."""

from __future__ import annotations

from ctypes import CDLL


def give_back() -> None:
    """Return free memory of the C library's heap to the machine.

    Reading a tokenizer takes as much again as it is large. glibc keeps that for later; the pages of
    the weights would come on top of it. Other C libraries have no such call, and nothing is done.
    """
    trim = getattr(CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
