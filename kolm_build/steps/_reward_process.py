"""The process that runs a recipe's own reward function; the standard library alone (RL-12).

It is started with this file as its program and the recipe's file as its argument, reads one
request a line and writes one answer a line, each with its number: what the recipe's file writes
into the pipe is nobody's answer. What it prints goes to the log.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
from collections.abc import Callable
from typing import IO

Reward = Callable[..., object]


def main(path: str) -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    try:
        function = _function(path)
    except BaseException as error:  # noqa: BLE001  # the door to the user's code
        _say(answers, 0, {"failed": f"{type(error).__name__}: {error}"})
        return
    _say(answers, 0, {"ready": True})
    for number, line in enumerate(sys.stdin.buffer, 1):
        _say(answers, number, _answer(function, json.loads(line)))


def _function(path: str) -> Reward:
    spec = importlib.util.spec_from_file_location("kolm_reward", path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function: Reward | None = getattr(module, "reward", None)
    if not callable(function):
        raise TypeError("the file has no function `reward`")
    return function


def _answer(function: Reward, request: dict[str, object]) -> dict[str, object]:
    random.seed(0)
    try:
        value = function(
            *(request[name] for name in ("prompt", "completion", "reference", "fields"))
        )
    except BaseException as error:  # noqa: BLE001  # the door to the user's code
        return {"failed": f"{type(error).__name__}: {error}"}
    if isinstance(value, float):
        return {"float": float(value).hex()}
    if isinstance(value, int):
        return {"decimal": str(int(value))}
    if isinstance(value, str):
        return {"decimal": value}
    return {"kind": type(value).__name__}


def _say(answers: IO[str], number: int, answer: dict[str, object]) -> None:
    answers.write(json.dumps(answer | {"number": number}) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
