"""``script``: the user's own Python, run with the standard library alone (spec/steps.md).

The file defines ``def run(inputs, out, params)``: role to folder, the folder to fill, and the
derivation's other parameters. It runs without a network and sees nothing but its inputs, so its
output is a function of them; but for functions of the machine's C library, which the log names.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from kolm_build.core.request import StepRequest
from kolm_build.errors import InvalidRecordError, StepFailedError
from kolm_build.steps._entry import Events, run_step
from kolm_build.steps._files import files_of, input_folder, output_folder
from kolm_build.steps._machine_math import uses

UserRun = Callable[[Mapping[str, Path], Path, Mapping[str, str | int]], object]

_SIGNATURE = "def run(inputs, out, params)"


def main(argv: list[str]) -> int:
    """The step's exit status."""
    return run_step(argv, run)


def run(request: StepRequest, events: Events) -> None:
    """Run the user's file on the inputs; its output folder must not stay empty."""
    folder = input_folder(request, "script")
    params = dict(request.params)
    script = _entry_file(folder, params.pop("entry", ""))
    inputs = {role: Path(path) for role, path in request.inputs.items() if role != "script"}
    out = output_folder(request)
    _log_machine_math(folder, events)
    try:
        _user_run(script)(inputs, out, params)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the door to the user's code
        raise _told(error, folder, events) from None
    if not files_of(out):
        raise StepFailedError(
            "the script wrote nothing",
            file=script.name,
            expected="at least one file in the folder `out`",
        )


def _log_machine_math(folder: Path, events: Events) -> None:
    """Say which functions the scripts name whose last bit is the machine's (STEP-29)."""
    for name in files_of(folder):
        if not name.endswith(".py"):
            continue
        try:
            found = uses((folder / name).read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):  # importing it says so, where it is imported
            continue
        for use in found:
            events.log(
                f"{name}:{use.line}: {use.name} is computed by the machine's C library; "
                "its last bit may differ on another machine"
            )


def _entry_file(folder: Path, entry: str | int) -> Path:
    if entry not in files_of(folder):
        raise InvalidRecordError(
            "the script is not there",
            where="params.entry",
            expected=", ".join(files_of(folder)[:8]),
            actual=repr(entry),
        )
    return folder / str(entry)


def _user_run(script: Path) -> UserRun:
    """The function `run` of the file `script`; modules beside the file can be imported."""
    spec = importlib.util.spec_from_file_location("kolm_script", script)
    if spec is None or spec.loader is None:
        raise InvalidRecordError("not a Python file", file=script.name, expected="a name in .py")
    sys.path.insert(0, str(script.parent))
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    function: UserRun | None = getattr(module, "run", None)
    if not callable(function):
        raise InvalidRecordError(
            "the script has no function `run`", file=script.name, expected=_SIGNATURE
        )
    return function


def _told(error: BaseException, folder: Path, events: Events) -> BaseException:
    """`error` for a reader who knows the script and not this program."""
    if isinstance(error, InvalidRecordError):
        return error
    if isinstance(error, SyntaxError):
        return StepFailedError(
            f"the script is not Python: {error.msg}",
            file=_shown(error.filename or "", folder),
            where=f"line {error.lineno}",
            actual=(error.text or "").strip() or None,
        )
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(folder)
    ]
    for frame in frames:
        place = f"{_shown(frame.filename, folder)}:{frame.lineno}, in {frame.name}"
        events.log(f"{place}: {(frame.line or '').strip()}")
    return StepFailedError(
        f"the script raised {type(error).__name__}: {error}",
        file=_shown(frames[-1].filename, folder) if frames else None,
        where=f"line {frames[-1].lineno}, in {frames[-1].name}" if frames else None,
        actual=(frames[-1].line or None) if frames else None,
        expected=None if frames else _SIGNATURE,
    )


def _shown(filename: str, folder: Path) -> str:
    path = Path(filename)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
