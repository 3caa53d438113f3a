"""A recipe's own reward function, in a process of its own (RL-10 to RL-16)."""

from __future__ import annotations

import json
import math
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from kolm_build.core.decimals import parse_decimal
from kolm_build.errors import InvalidRecordError, StepFailedError
from kolm_build.steps import _reward_process

_MOST_BYTES = 1 << 16
SIGNATURE = "def reward(prompt, completion, reference, fields)"


class RewardFile:
    """The function `reward` of a Python file; a context that starts and ends its process.

    Args:
        path: The file.
        timeout_seconds: Most seconds that one call may take.
    """

    def __init__(self, path: Path, timeout_seconds: int) -> None:
        self._path = path
        self._timeout = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._calls = 0

    def __enter__(self) -> Self:
        """Start the process, and let it load the file."""
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", _reward_process.__file__,
             str(self._path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            bufsize=0,
        )  # fmt: skip
        try:
            answer = self._read("loading it")
            if "failed" in answer:
                raise self._error("the reward function cannot be loaded", "loading it", answer)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        """End the process."""
        self._end()

    def call(
        self, prompt: str, completion: str, reference: str, fields: Mapping[str, str], where: str
    ) -> float:
        """The reward of a completion.

        Args:
            prompt: The last turn before the answer.
            completion: The text said.
            reference: The row's own.
            fields: The row's further columns.
            where: Row and completion, for an error.

        Raises:
            StepFailedError: The function raised, hung, ended, or gave something else than one
                finite number.
        """
        assert self._process is not None, "the process runs inside the context alone"
        assert self._process.stdin is not None
        self._calls += 1
        request = {
            "prompt": prompt,
            "completion": completion,
            "reference": reference,
            "fields": dict(fields),
        }
        try:
            _write(self._process.stdin.fileno(), json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise self._gone(where) from None
        return self._number(self._read(where), where)

    def _read(self, where: str) -> dict[str, object]:
        """One answer; it comes in time, alone, and is a JSON object with the call's number."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, found = self._process.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if not selector.select(self._timeout):
                    raise self._error(
                        f"the reward function gave no answer in {self._timeout} seconds",
                        where,
                        advice="Raise reward_timeout_seconds, or make it faster.",
                    )
                piece = os.read(pipe, _MOST_BYTES)
                if not piece:
                    raise self._gone(where)
                found += piece
        if found.count(b"\n") != 1 or len(found) > _MOST_BYTES:
            raise self._error("the reward function wrote more than one answer", where)
        try:
            answer = json.loads(found)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or answer.get("number") != self._calls:
            raise self._error("the reward function's process wrote what is no answer", where)
        return answer

    def _number(self, answer: Mapping[str, object], where: str) -> float:
        if "failed" in answer:
            raise self._error("the reward function raised an error", where, answer)
        try:
            if "float" in answer:
                value = float.fromhex(str(answer["float"]))
            elif "decimal" in answer:
                value = float(parse_decimal(str(answer["decimal"])))
            else:
                raise self._error(
                    "the reward function gave no number",
                    where,
                    {"failed": str(answer.get("kind"))},
                    expected="one float, int or decimal text",
                )
        except (InvalidRecordError, ValueError, OverflowError):
            raise self._error(
                "the reward function gave no number",
                where,
                {"failed": repr(answer.get("decimal", answer.get("float")))[:80]},
                expected="one float, int or decimal text",
            ) from None
        if not math.isfinite(value):
            raise self._error(
                "a reward is not a finite number", where, {"failed": str(value)}, expected="finite"
            )
        return value

    def _gone(self, where: str) -> StepFailedError:
        return self._error("the reward function ended its process", where)

    def _error(
        self,
        reason: str,
        where: str,
        answer: Mapping[str, object] | None = None,
        expected: str | None = None,
        advice: str | None = None,
    ) -> StepFailedError:
        return StepFailedError(
            reason,
            file=self._path.name,
            where=where,
            expected=expected or SIGNATURE,
            actual=None if answer is None else str(answer["failed"])[:200],
            advice=advice,
        )

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()
        self._process = None


def _write(pipe: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(pipe, left) :]


def _environment() -> dict[str, str]:
    """What the process is told: how to find Python's libraries, and one order of sets."""
    fixed = {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "TZ": "UTC"}
    found = os.environ.get("LD_LIBRARY_PATH")
    return fixed if found is None else fixed | {"LD_LIBRARY_PATH": found}
