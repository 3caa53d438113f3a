"""`kolm run`: the one command that computes with a model, and imports torch where it must."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from kolm_build.errors import BuildError, InvalidRecordError, UsageError
from kolm_build.surfaces.cli.options import add_json, positive
from kolm_build.surfaces.cli.parser import Parser
from kolm_build.surfaces.terminal import Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kolm_build.runtime.asking import Answer, Prompt
    from kolm_build.runtime.distribution import Distribution
    from kolm_build.runtime.files import ModelFiles
    from kolm_build.runtime.opening import OpenedModel
    from kolm_build.runtime.settings import Form, GenerationSettings

_MAX_FILE_BYTES = 64 << 20
_FILTERS = ("top_k", "top_p", "min_p")


def describe(parser: Parser) -> None:
    """Declare the command."""
    parser.tell_of(
        "Ask the model in an artifact. By default it answers greedily: always the same. Drawn\n"
        "answers follow from their seed, whatever is asked beside them and on whichever machine.\n"
        "The weights are mapped from the file where they lie; nothing is unpacked.",
        ('kolm run triage.kolm "Diagnosis: acute appendicitis"', ""),
        ('kolm run triage.kolm --system "You are a clerk." "Hello"', ""),
        ("echo Hello | kolm run triage.kolm -", "the prompt from stdin"),
        ("kolm run triage.kolm --temperature 0.7 --top-p 0.9 --seed 7 Hello", "drawn"),
        ("kolm run triage.kolm --labels labels.txt Hello", "one of these lines"),
        ("kolm run triage.kolm --json-schema answer.json Hello", "JSON by a schema"),
        ("kolm run triage.kolm --stream --stop END Hello", "as it is said"),
        ("kolm run triage.kolm --prompts prompts.jsonl > answers.jsonl", "many"),
    )
    parser.add_argument("file", metavar="FILE.kolm", type=Path, help="the artifact")
    parser.has_optional_word = True
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="the question; - reads it from stdin"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE.jsonl",
        type=Path,
        help="a question a line, an object with `prompt` and, if wanted, `system` and `id`;"
        " answers are JSON lines in the same order",
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="a system message")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=positive, default=256, help="default: 256"
    )
    _describe_choice(parser)
    parser.add_argument("--stream", action="store_true", help="print the answer as it is said")
    parser.add_argument(
        "--threads",
        metavar="N",
        type=positive,
        help="compute threads (default: all processors, where they change no byte; else 1)",
    )
    add_json(parser, "one JSON object with the answer, its token counts and why it ended")


def _describe_choice(parser: Parser) -> None:
    """What decides which token follows, and where an answer ends."""
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=_number,
        default=0.0,
        help="draw from the probabilities at this temperature (default: 0, the likeliest token)",
    )
    parser.add_argument("--top-k", metavar="N", type=positive, help="draw from the N likeliest")
    parser.add_argument(
        "--top-p", metavar="P", type=_number, help="draw from the likeliest that make up P"
    )
    parser.add_argument(
        "--min-p", metavar="P", type=_number, help="leave out what is below P of the likeliest"
    )
    parser.add_argument(
        "--seed", metavar="N", type=_seed, default=0, help="what draws follow from (default: 0)"
    )
    parser.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help="end the answer before this text; may be given several times",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--labels", metavar="FILE", type=Path, help="answer with one of the lines of FILE"
    )
    form.add_argument("--regex", metavar="PATTERN", help="answer with what PATTERN matches whole")
    form.add_argument(
        "--json-schema", metavar="FILE", type=Path, help="answer with JSON by the schema in FILE"
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"not a number: {text!r}") from None
    if not 0 <= value <= 1e6:
        raise ArgumentTypeError(f"out of range: {text!r}")
    return value


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 63:
        raise ArgumentTypeError(f"not a whole number from 0 to 2^63 - 1: {text!r}")
    return int(text)


def run(args: Namespace, terminal: Terminal) -> int:
    """Answer the prompt, or the prompts of a file."""
    _check(args)
    asked, settings = _asked(args), _settings(args)
    files = _files(args.file)
    threads = _set_threads(files.numerics, args.threads)
    try:
        ends = _answer(args, terminal, _opened(files, threads), asked, settings)
    except InvalidRecordError as error:
        raise _by_option(error, args) from None
    if settings.form is not None and "length" in ends:
        raise BuildError(
            "an answer was cut off before it had the form asked for",
            where="--max-new-tokens",
            actual=f"{args.max_new_tokens} tokens",
            advice="Allow more tokens, or ask for a shorter form.",
        )
    return 0


def _check(args: Namespace) -> None:
    """Refuse what cannot be asked together."""
    if not args.file.exists():
        raise UsageError("no such file", file=str(args.file))
    if (args.prompt is None) == (args.prompts is None):
        raise UsageError("ask one question, or name a file of them", where="PROMPT or --prompts")
    if args.stream and (args.json or args.prompts is not None):
        raise UsageError("--stream prints one answer as text", where="--stream")
    given = [name for name in _FILTERS if getattr(args, name) is not None]
    if given and not args.temperature:
        raise UsageError(
            "nothing is drawn at the temperature 0",
            where="--" + given[0].replace("_", "-"),
            advice="Add --temperature, such as 1.",
        )


def _answer(
    args: Namespace,
    terminal: Terminal,
    model: OpenedModel,
    asked: list[tuple[str | None, Prompt]],
    settings: GenerationSettings,
) -> list[str]:
    """Print the answers; why each ended."""
    if args.stream:
        return [_stream(terminal, model, asked[0][1], settings)]
    answers = model.answers([prompt for _, prompt in asked], settings)
    for (name, _), answer in zip(asked, answers, strict=True):
        if args.json or args.prompts is not None:
            terminal.give(_value(name, answer))
        else:
            terminal.say(answer.text)
    return [answer.end for answer in answers]


def _stream(
    terminal: Terminal, model: OpenedModel, prompt: Prompt, settings: GenerationSettings
) -> str:
    said = model.stream(prompt.text, system=prompt.system, settings=settings)
    for piece in said:
        terminal.say_piece(piece)
    terminal.say("")
    return said.end


def _value(name: str | None, answer: Answer) -> Mapping[str, object]:
    """An answer as JSON."""
    return ({} if name is None else {"id": name}) | {
        "end": answer.end,
        "output_tokens": answer.output_tokens,
        "prompt_tokens": answer.prompt_tokens,
        "text": answer.text,
    }


# --------------------------------------------------------------------------------------- asking


def _asked(args: Namespace) -> list[tuple[str | None, Prompt]]:
    """What is asked, each with its id where it has one."""
    import sys

    from kolm_build.runtime.asking import Prompt

    if args.prompts is not None:
        return _rows(args.prompts, args.system)
    text = sys.stdin.read().removesuffix("\n") if args.prompt == "-" else args.prompt
    return [(None, Prompt(text=text, system=args.system))]


def _rows(path: Path, system: str) -> list[tuple[str | None, Prompt]]:
    lines = [line for line in _read(path).splitlines() if line.strip()]
    if not lines:
        raise InvalidRecordError("no prompts", file=str(path))
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_row(line, system))
        except InvalidRecordError as error:
            raise error.under(f"line {number}").in_file(str(path)) from None
    return rows


def _row(line: str, system: str) -> tuple[str | None, Prompt]:
    from kolm_build.core import strict_json
    from kolm_build.core.fields import Fields
    from kolm_build.runtime.asking import Prompt

    fields = Fields(strict_json.loads(line.encode()))
    name = fields.text("id") if fields.has("id") else None
    prompt = Prompt(text=fields.text("prompt"), system=fields.text("system", default=system))
    fields.done()
    return name, prompt


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise InvalidRecordError("too large", file=str(path))
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError("cannot be read", file=str(path), actual=error.strerror) from None
    except UnicodeDecodeError:
        raise InvalidRecordError("not UTF-8", file=str(path)) from None


def _settings(args: Namespace) -> GenerationSettings:
    from kolm_build.runtime.settings import GenerationSettings

    return GenerationSettings(
        max_new_tokens=args.max_new_tokens,
        distribution=_distribution(args) if args.temperature else None,
        seed=args.seed,
        stop=tuple(args.stop),
        form=_form(args),
    )


def _distribution(args: Namespace) -> Distribution:
    from kolm_build.runtime.distribution import Distribution

    given = {name: getattr(args, name) for name in _FILTERS if getattr(args, name) is not None}
    return Distribution(temperature=args.temperature, **given)


def _form(args: Namespace) -> Form | None:
    from kolm_build.runtime.settings import JsonSchema, Labels, Regex

    if args.labels is not None:
        return Labels(tuple(line for line in _read(args.labels).splitlines() if line))
    if args.regex is not None:
        return Regex(args.regex)
    return None if args.json_schema is None else JsonSchema(_read(args.json_schema))


def _by_option(error: InvalidRecordError, args: Namespace) -> InvalidRecordError:
    """`error`, named by the option that the form came by and its file where the form is wrong."""
    from kolm_build.runtime.settings import JsonSchema, Labels, Regex

    for form, option, file in (
        (Labels, "--labels", args.labels),
        (Regex, "--regex", None),
        (JsonSchema, "--json-schema", args.json_schema),
    ):
        word, _, inside = (error.where or "").partition(".")
        if word == form.word:
            error.where = f"{option}, {inside}" if inside else option
            error.file = None if file is None else str(file)
    return error


# ------------------------------------------------------------------------------------- computing


def _files(path: Path) -> ModelFiles:
    """Where the model's files lie; an artifact's directory is parsed and checked once, here."""
    from kolm_build.runtime.files import files_in, find_model

    if path.is_dir():
        return find_model(path)
    from kolm_build.attest.container import Container

    with Container.open(path) as container:
        return files_in(path, container.placed.values(), container.manifest.numerics)


def _set_threads(numerics: str, threads: int | None) -> int:
    """What the maths libraries read when they are first loaded, which is after this; how many."""
    from kolm_build.core.numerics import CUBLAS_WORKSPACE, NATIVE

    native = numerics == NATIVE
    count = threads or (1 if native else len(os.sched_getaffinity(0)))
    os.environ["OMP_NUM_THREADS"] = str(count)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if native:
        workspace, size = CUBLAS_WORKSPACE
        os.environ[workspace] = size
    return count


def _opened(files: ModelFiles, threads: int) -> OpenedModel:
    import gc

    gc.disable()  # nothing of what is imported goes again; looking costs a tenth of the time
    from kolm_build.runtime.answering import answering

    gc.freeze()
    gc.enable()
    return answering(files, threads=threads)
