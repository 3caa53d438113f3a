"""`kolm run`: the one command that imports torch."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import AbstractContextManager
from pathlib import Path

from kolm_build.surfaces.cli.options import add_json, positive
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.cli.terminal import Terminal


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Ask the model in an artifact one question. It answers greedily: always the same.\n"
        "The weights are mapped from the file where they lie; nothing is unpacked.",
        ('kolm run triage.kolm "Diagnosis: acute appendicitis"', ""),
        ('kolm run triage.kolm --system "You are a clerk." "Hello"', ""),
        ("echo Hello | kolm run triage.kolm -", "the prompt from stdin"),
    )
    parser.add_argument("file", metavar="FILE.kolm", type=Path, help="the artifact")
    parser.add_argument("prompt", metavar="PROMPT", help="the question; - reads it from stdin")
    parser.add_argument("--system", default="", metavar="TEXT", help="a system message")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=positive, default=256, help="default: 256"
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=positive,
        help="compute threads (default: all processors, where they change no byte; else 1)",
    )
    add_json(parser, "one JSON object with the answer and its token counts")


def run(args: Namespace, terminal: Terminal) -> int:
    """Answer the prompt."""
    import sys

    prompt = sys.stdin.read().removesuffix("\n") if args.prompt == "-" else args.prompt
    if not args.file.exists():
        from kolm_build.errors import UsageError

        raise UsageError("no such file", file=str(args.file))
    with _computing_as(args.file, args.threads):
        from kolm_build.runtime.loading import load

        model = load(args.file)
        answer = model.generate(prompt, system=args.system, max_new_tokens=args.max_new_tokens)
    if args.json:
        terminal.give(
            {
                "output_tokens": answer.output_tokens,
                "prompt_tokens": answer.prompt_tokens,
                "text": answer.text,
            }
        )
    else:
        terminal.say(answer.text)
    return 0


def _computing_as(file: Path, threads: int | None) -> AbstractContextManager[None]:
    """The arithmetic in which the model in `file` was judged."""
    from kolm_build.core.numerics import CUBLAS_WORKSPACE, NATIVE, PORTABLE, Numerics

    native = file.is_file() and _class_of(file) == NATIVE
    count = threads or (1 if native else len(os.sched_getaffinity(0)))
    # Read by the maths libraries when they are first loaded, which is below.
    os.environ["OMP_NUM_THREADS"] = str(count)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from kolm_build.core.request import Circumstances
    from kolm_build.numerics.apply import applied
    from kolm_build.numerics.kernels import LIBRARY

    if native:
        workspace, size = CUBLAS_WORKSPACE
        os.environ[workspace] = size
        return applied(Numerics(cls=NATIVE, threads=count))
    here = Circumstances(kernels=str(LIBRARY), threads=count)
    return applied(Numerics(cls=PORTABLE), here)


def _class_of(artifact: Path) -> str:
    """The numerics class that an artifact names."""
    from kolm_build.attest.container import Container

    with Container.open(artifact) as container:
        return container.manifest.numerics
