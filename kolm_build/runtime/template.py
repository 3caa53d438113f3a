"""Chat templates, rendered in a sandbox with a bound on their work (GEN-20 to GEN-23).

A template is a program that somebody else wrote. It sees the messages as plain values and has
jinja2's sandbox around it: no file, no network, no clock, no chance. What a sandbox does not stop
is work without end, so that is bounded three times: by the lines of Python that are run, which is
the same number everywhere; by the memory that rendering may add; and, for single operations on
what fits that memory, by processor time. Nothing of a template is computed before that, as it is
compiled.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from time import thread_time
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kolm_build.errors import InvalidRecordError

MAX_CHARACTERS = 1 << 18
"""Most characters of a template; those of models have some thousands."""

MAX_LINES = 1_000_000
"""Most lines of Python that rendering may run; a conversation of a thousand turns needs a tenth."""

MAX_MEMORY_BYTES = 256 << 20
"""Most memory that rendering may add to the process."""

MAX_CPU_SECONDS = 10
"""Most processor time; reached by single huge operations alone, `MAX_LINES` comes long before."""

LINES_A_LOOK = 16
"""Lines between two looks at the processor time: a look costs as much as some lines."""

MAX_REPEATS = 1 << 16
"""Most elements that ``*`` may make of a text or list."""

MAX_NUMBER = 1 << 64
"""Largest number that ``*`` may make, and that is divided, by operator or filter."""

MAX_DIGITS = 300
"""Most digits that ``round`` may look at: binary64 has no more."""

_PAGE_BYTES = resource.getpagesize()


def rendered(
    template: str, messages: Sequence[Mapping[str, str]], specials: Mapping[str, str]
) -> str:
    """The text of a conversation up to where the model's answer starts.

    Args:
        template: The Jinja template.
        messages: The turns.
        specials: Special tokens that the template may name, such as ``bos_token``.

    Raises:
        InvalidRecordError: The template is malformed, refuses the messages, reaches out of its
            sandbox, or works without end.
    """
    try:
        program = _compiled(template)
        with _bounded_memory(), _bounded_work():
            text = program.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **specials,
            )
        text.encode()  # half of a surrogate pair is no text
        return text
    except (_Endless, MemoryError):
        raise InvalidRecordError(
            "the model's chat template works without end",
            expected=f"at most {MAX_LINES} lines run and {MAX_MEMORY_BYTES >> 20} MiB",
            advice="Do not use a model from whoever wrote this template.",
        ) from None
    except RecursionError:
        raise _refusal("it calls itself without end") from None
    except Exception as error:  # noqa: BLE001 -- a door: a stranger's program raises what it likes
        raise _refusal(str(error)) from None


class _Endless(BaseException):
    """Not an `Exception`: nothing that a template calls may catch it."""


def _refusal(reason: str) -> InvalidRecordError:
    return InvalidRecordError(
        "the model's chat template refuses these messages", actual=reason[:200]
    )


@contextmanager
def _bounded_work() -> Iterator[None]:
    """End the block with `_Endless` after `MAX_LINES` lines of Python."""
    lines, before, until = 0, sys.gettrace(), thread_time() + MAX_CPU_SECONDS

    def count(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines > MAX_LINES or (lines % LINES_A_LOOK == 0 and thread_time() > until):
                raise _Endless
        return count

    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Within the block the process may grow by `MAX_MEMORY_BYTES`; more is a `MemoryError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 -- a third of a `Path`'s time
        pages = int(file.read(32).partition(b" ")[0])
    limit = pages * _PAGE_BYTES + MAX_MEMORY_BYTES
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# -------------------------------------------------------------------------------------- sandbox


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, without what draws by chance or makes much of little at once."""

    intercepted_binops = frozenset({"%", "*", "**", "//"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """``left operator right``, where it makes nothing large."""
        if operator == "**":
            raise jinja2.exceptions.SecurityError("a chat template may not use **")
        if operator != "*":
            _check_numbers(left, right)
            return super().call_binop(context, operator, left, right)
        sized = any(hasattr(one, "__len__") for one in (left, right))
        made = _size(left) * _size(right)
        if made > (MAX_REPEATS if sized else MAX_NUMBER):
            raise jinja2.exceptions.SecurityError("a chat template makes too much with *")
        return super().call_binop(context, operator, left, right)


class _Generator(CodeGenerator):
    """jinja2's, without the computing of constants: that is for rendering, where it is bounded."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if isinstance(node, nodes.TemplateData):
            return super()._output_child_to_const(node, frame, finalize)
        raise nodes.Impossible

    def visit_EvalContextModifier(  # noqa: N802 -- jinja2's name
        self, node: nodes.EvalContextModifier, frame: Frame
    ) -> None:
        """``{% autoescape %}``, of true or false."""
        if not all(isinstance(option.value, nodes.Const) for option in node.options):
            self.fail("autoescape is true or false", node.lineno)
        super().visit_EvalContextModifier(node, frame)


def _check_numbers(*values: Any) -> None:
    """Refuse what is divided for long: two integers of many digits."""
    if any(isinstance(one, int) and abs(one) > MAX_NUMBER for one in values):
        raise jinja2.exceptions.SecurityError("a chat template divides numbers beyond 2^64")


def _round(value: Any, precision: Any = 0, method: Any = "common") -> Any:
    """jinja2's ``round``, of which a power of ten is computed."""
    _check_numbers(value)
    if abs(precision) > MAX_DIGITS:
        raise jinja2.exceptions.SecurityError(f"round looks at {MAX_DIGITS} digits at most")
    return jinja2.filters.do_round(value, precision, method)


def _is_divisible(value: Any, divisor: Any) -> bool:
    _check_numbers(value, divisor)
    return jinja2.tests.test_divisibleby(value, divisor)


def _size(value: Any) -> Any:
    return len(value) if hasattr(value, "__len__") else abs(value)


class _Generation(Extension):
    """``{% generation %}``: marks what an assistant said; here it is text like other text."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2's own type

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """``dict`` without the type's own attributes."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` without names that Python keeps for itself."""

    def __init__(self, *args: Any, **items: Any) -> None:
        for name in dict(*args, **items):
            _check_name(name)
        super().__init__(*args, **items)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template may not set {name!r}")


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    if len(template) > MAX_CHARACTERS:
        raise _refusal(f"it has more than {MAX_CHARACTERS} characters")
    with _bounded_memory():
        return _environment().from_string(template)


def _environment() -> jinja2.Environment:
    """What transformers gives a template, less the clock and chance."""
    found = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        optimized=False,  # that computes constants
    )
    found.code_generator_class = _Generator
    found.filters |= {"round": _round, "tojson": _tojson}
    found.tests["divisibleby"] = _is_divisible
    found.globals |= {"dict": _Dict(), "namespace": _Namespace, "raise_exception": _raise}
    del found.globals["lipsum"], found.filters["random"]
    return found


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 -- as transformers has it
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
