"""`packaging`, the Python Packaging Authority's own parsers, or the copy of it that pip brings.

Steps need it and kolm does not, so it is found where it is used.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from kolm_build.errors import MachineError


def packaging(name: str) -> ModuleType:
    """The module `name` of `packaging`, such as ``tags``.

    Raises:
        MachineError: It is neither installed nor in pip, or is too old to have it.
    """
    for home in ("packaging", "pip._vendor.packaging"):
        try:
            return import_module(f"{home}.{name}")
        except ImportError:
            continue
    raise MachineError(
        f"lists of wheels are read by the distribution packaging, and packaging.{name} is not here",
        expected="packaging 26.1 or newer",
        advice="`pip install 'packaging>=26.1'`, in the environment that kolm runs in.",
    )
