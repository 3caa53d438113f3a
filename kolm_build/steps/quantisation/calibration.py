"""Calibration: what each layer of a network is fed by real rows, one decoder layer at a time.

Simple case first: ``for block in walk(network, sequences): block.statistics(block.stages[0])``.
A block is a decoder layer in float32. Its inputs are what the blocks before it gave *after* the
caller changed their weights, so a method sees the errors that it made so far. The inputs of one
block are in memory at a time, and one block's weights in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from kolm_build.core import strict_json
from kolm_build.errors import InvalidDataError, InvalidRecordError, NotFiniteError
from kolm_build.runtime.loading import Model
from kolm_build.steps._conversations import Conversation, Text, read_conversations, read_texts

ROWS = "train.jsonl"
LEAST_TOKENS = 128
"""Fewer tokens than these say too little of a layer's inputs."""

Tokens = tuple[int, ...]
Progress = Callable[[int, int], None]
"""Is told how many decoder layers are done, and of how many."""


# ------------------------------------------------------------------------------------ sequences


def sequences_of(model: Model, folder: Path, *, rows: int, length: int) -> tuple[Tokens, ...]:
    """The tokens of the first `rows` rows of train.jsonl in `folder`, in the file's order.

    A conversation is its prompt and its answer as training reads them; a text is its tokens.

    Args:
        model: Whose template and tokens.
        folder: A data set's output ``train``, of the schema ``answers`` or ``texts``.
        rows: How many rows; all where the file has fewer.
        length: Most tokens of a row; what lies behind them is not read.

    Raises:
        InvalidDataError: There are no rows, or too few tokens in all.
        InvalidRecordError: A row is not of these schemas.
    """
    most = min(length, model.window)
    found = tuple(_tokens(model, row)[:most] for row in _read(folder / ROWS)[:rows])
    tokens = sum(map(len, found))
    if tokens < LEAST_TOKENS:
        raise InvalidDataError(
            "too few tokens to calibrate with",
            file=ROWS,
            expected=f"at least {LEAST_TOKENS} tokens",
            actual=f"{tokens} tokens in {len(found)} rows",
            advice="Raise calibration_rows or calibration_length, or bring more rows.",
        )
    return found


def _read(path: Path) -> Sequence[Conversation | Text]:
    lines = path.read_bytes().splitlines()
    if not lines:
        raise InvalidDataError(
            "an empty calibration set", file=path.name, expected="rows to calibrate with"
        )
    first = _value(path.name, lines[0])
    if isinstance(first, dict) and "text" in first:
        return read_texts(path)
    return read_conversations(path)


def _value(file: str, line: bytes) -> object:
    try:
        return strict_json.loads(line)
    except InvalidRecordError as error:
        raise error.under("row 1").in_file(file) from None


def _tokens(model: Model, row: Conversation | Text) -> Tokens:
    if isinstance(row, Text):
        return tuple(model.chat.tokenizer.encode(row.text, add_special_tokens=False).ids)
    return (*model.chat.prompt_ids(row.messages), *model.chat.answer_ids(row.answer))


# ------------------------------------------------------------------------------------ what is seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What the layers of a stage saw.

    Attributes:
        gram: Sum of x x' over the tokens, shape (columns, columns), binary64.
        mean: Mean of |x|, shape (columns,), float32.
        most: Largest |x|, shape (columns,), float32.
        tokens: How many tokens.
    """

    gram: NDArray[np.float64]
    mean: torch.Tensor
    most: torch.Tensor
    tokens: int

    def gram32(self) -> torch.Tensor:
        """`gram` in float32."""
        return torch.from_numpy(self.gram.astype(np.float32))

    def scaled(self, scale: torch.Tensor) -> Self:
        """What the layers would see were their inputs divided by `scale`, shape (columns,)."""
        wide = scale.double().numpy()
        return replace(
            self,
            gram=self.gram / (wide[:, None] * wide[None, :]),
            mean=self.mean / scale,
            most=self.most / scale,
        )


@dataclass(slots=True)
class _Sums:
    """The sums behind `Statistics`, token after token."""

    gram: NDArray[np.float64] | None = None
    total: torch.Tensor | None = None
    most: torch.Tensor | None = None
    tokens: int = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Count the tokens of `inputs`, shape (…, columns), float32."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        size = rows.abs()
        # One sequence's products are summed in float32, sequences in binary64.
        gram = (rows.T @ rows).double().numpy()
        total, most = size.sum(dim=0), size.amax(dim=0)
        self.gram = gram if self.gram is None else self.gram + gram
        self.total = total if self.total is None else self.total + total
        self.most = most if self.most is None else torch.maximum(self.most, most)
        self.tokens += len(rows)

    def statistics(self, where: str) -> Statistics:
        """All that was added.

        Raises:
            NotFiniteError: An input was not finite.
        """
        assert self.gram is not None
        assert self.total is not None
        assert self.most is not None
        if not np.isfinite(self.gram).all():
            raise NotFiniteError(
                "a layer's inputs are not finite",
                where=where,
                expected="finite numbers for every calibration row",
                advice="Look for infinite weights in the layers before it.",
            )
        return Statistics(
            gram=self.gram, mean=self.total / self.tokens, most=self.most, tokens=self.tokens
        )


# ------------------------------------------------------------------------------------ blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Linear layers of a block that read one input.

    Attributes:
        layers: Their names in the network, in the order in which they are called.
        norm: The name of the norm whose output they read; empty where it is not one's.
    """

    layers: tuple[str, ...]
    norm: str


@dataclass(slots=True, kw_only=True)
class Block:
    """A decoder layer, in float32, with what it is fed.

    Attributes:
        name: Its name in the network, such as ``model.layers.3``.
        module: The layer; a method changes its weights, and the next block's inputs with them.
        stages: Its linear layers, in the order in which they are called.
    """

    name: str
    module: torch.nn.Module
    stages: tuple[Stage, ...] = ()
    _calls: list[_Call] = field(default_factory=list)

    def parts(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """The modules inside, by the names that the network has for them."""
        for inner, module in self.module.named_modules():
            yield f"{self.name}.{inner}", module

    def part(self, name: str) -> Any:
        """The module of this block that the network calls `name`."""
        return self.module.get_submodule(name.removeprefix(f"{self.name}."))

    def linear(self, name: str) -> torch.nn.Linear:
        """The linear layer that the network calls `name`."""
        return self.part(name)

    def weights(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The weights of the linear layers `names` as they are now, float32."""
        return {name: self.linear(name).weight.data for name in names}

    def statistics(self, stage: Stage) -> Statistics:
        """What the layers of `stage` are fed now, with the block's weights as they are.

        Raises:
            NotFiniteError: An input is not finite.
        """
        sums = _Sums()

        def note(_module: object, args: tuple[torch.Tensor, ...]) -> None:
            sums.add(args[0])
            raise _ReachedError

        handle = self.linear(stage.layers[0]).register_forward_pre_hook(note)
        try:
            for call in self._calls:
                self._until_reached(call)
        finally:
            handle.remove()
        return sums.statistics(stage.layers[0])

    def input(self) -> torch.Tensor:
        """What the block is fed of the first sequence."""
        return self._calls[0].hidden

    def output(self) -> torch.Tensor:
        """What the block makes of the first sequence."""
        return self._run(self._calls[0])

    def _until_reached(self, call: _Call) -> None:
        try:
            self._run(call)
        except _ReachedError:
            return

    def _run(self, call: _Call) -> torch.Tensor:
        with torch.no_grad():
            made = self.module(call.hidden, *call.others, **call.named)
        return made[0] if isinstance(made, tuple) else made


@dataclass(slots=True)
class _Call:
    """How a network calls a decoder layer for one sequence."""

    hidden: torch.Tensor
    others: tuple[Any, ...]
    named: dict[str, Any]


class _ReachedError(Exception):
    """A forward pass came to where its rest is of no use."""


def walk(
    network: Any, sequences: Sequence[Tokens], on_block: Progress | None = None
) -> Iterator[Block]:
    """The decoder layers of `network`, first to last; `network` itself is not changed.

    Args:
        network: A causal language model of transformers.
        sequences: What it reads, as token ids.
        on_block: Is told of every block that is done.

    Raises:
        InvalidRecordError: The decoder layers of this architecture are not found.
    """
    name, layers = decoder_layers(network)
    calls = _recorded(network, layers, sequences)
    for at, layer in enumerate(layers):
        block = Block(name=f"{name}.{at}", module=_float_copy(layer), _calls=calls[at])
        block.stages = _stages(block)
        yield block
        if at + 1 < len(layers):
            for here, after in zip(calls[at], calls[at + 1], strict=True):
                after.hidden = block._run(here)  # noqa: SLF001 -- this module's own
        calls[at] = []
        if on_block is not None:
            on_block(at + 1, len(layers))


def decoder_layers(network: Any) -> tuple[str, Sequence[torch.nn.Module]]:
    """The name and the modules of the decoder layers of `network`.

    Raises:
        InvalidRecordError: No list, or more than one, has the length that the config names.
    """
    count = network.config.get_text_config().num_hidden_layers
    found = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    outer = [one for one in found if not any(one[0].startswith(f"{two[0]}.") for two in found)]
    if len(outer) != 1:
        raise InvalidRecordError(
            "the decoder layers of this architecture are not found",
            file="config.json",
            where="num_hidden_layers",
            expected=f"one list of {count} layers",
            actual=", ".join(name for name, _ in outer) or "none",
            advice='Quantise it with method = "rtn".',
        )
    return outer[0]


def _float_copy(layer: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(layer).float().eval().requires_grad_(False)  # noqa: FBT003 -- torch's own


def _recorded(
    network: Any, layers: Sequence[torch.nn.Module], sequences: Sequence[Tokens]
) -> list[list[_Call]]:
    """How each of `layers` is called for each sequence; only the first one's input is real."""
    recorder = _Recorder(layers)
    with _forwards(layers, recorder.forward), _float_embedding(network), torch.no_grad():
        for ids in sequences:
            network.base_model(input_ids=torch.tensor([ids]), use_cache=False)
    return recorder.calls


class _Recorder:
    """Stands in for decoder layers: notes how they are called, and hands on what they are fed.

    Args:
        layers: The decoder layers.
    """

    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        self.calls: list[list[_Call]] = [[] for _ in layers]
        self._first: torch.nn.Module | None = _float_copy(layers[0])
        self._gives_tuples = False

    def forward(self, at: int) -> Callable[..., Any]:
        """The forward pass of layer number `at`."""

        def forward(*args: Any, **named: Any) -> Any:
            hidden, others = (args[0], args[1:]) if args else (named.pop("hidden_states"), ())
            self._learn(_Call(hidden, others, named))
            # The masks and positions of a layer are its own; its inputs come when it is its turn.
            self.calls[at].append(_Call(hidden if at == 0 else hidden[:0], others, named))
            return (hidden,) if self._gives_tuples else hidden

        return forward

    def _learn(self, call: _Call) -> None:
        """From the first call of all: whether this architecture's layers give tuples."""
        if self._first is not None:
            made = self._first(call.hidden, *call.others, **call.named)
            self._gives_tuples = isinstance(made, tuple)
            self._first = None


@contextmanager
def _forwards(
    layers: Sequence[torch.nn.Module], made: Callable[[int], Callable[..., Any]]
) -> Iterator[None]:
    """`made(at)` in place of the forward pass of each of `layers` inside the block."""
    for at, layer in enumerate(layers):
        layer.forward = made(at)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def _float_embedding(network: Any) -> Iterator[None]:
    """What the embedding gives is float32 inside the block, and so is what follows from it."""
    handle = network.get_input_embeddings().register_forward_hook(
        lambda _module, _args, made: made.float()
    )
    try:
        yield
    finally:
        handle.remove()


def _stages(block: Block) -> tuple[Stage, ...]:
    """The linear layers of `block` by the tensor that they read, in the order of calls.

    Rows are read until every linear layer was called: an expert may be none of the first row's.
    """
    left = {name for name, module in block.parts() if isinstance(module, torch.nn.Linear)}
    stages: list[Stage] = []
    for call in block._calls:  # noqa: SLF001 -- this module's own
        if not left:
            break
        for stage in _read_by(block, call):
            new = tuple(name for name in stage.layers if name in left)
            stages += [replace(stage, layers=new)] if new else []
            left -= set(new)
    return tuple(stages)


def _read_by(block: Block, call: _Call) -> list[Stage]:
    """The stages of one run of `block`."""
    read: dict[int, list[str]] = {}
    normed: dict[int, str] = {}
    kept: list[torch.Tensor] = []  # as long as these live, no other tensor has their identity

    def reads(name: str) -> Callable[..., None]:
        def hook(_module: object, args: tuple[torch.Tensor, ...]) -> None:
            kept.append(args[0])
            read.setdefault(id(args[0]), []).append(name)

        return hook

    def gives(name: str) -> Callable[..., None]:
        def hook(_module: object, _args: object, made: object) -> None:
            if isinstance(made, torch.Tensor):
                kept.append(made)
                normed[id(made)] = name

        return hook

    with ExitStack() as stack:
        for name, module in block.parts():
            if isinstance(module, torch.nn.Linear):
                stack.callback(module.register_forward_pre_hook(reads(name)).remove)
            elif _is_norm(module):
                stack.callback(module.register_forward_hook(gives(name)).remove)
        block._run(call)  # noqa: SLF001 -- this module's own
    return [
        Stage(layers=tuple(dict.fromkeys(names)), norm=normed.get(tensor, ""))
        for tensor, names in read.items()
    ]


def _is_norm(module: torch.nn.Module) -> bool:
    """Whether `module` multiplies what it gives by a vector of its own."""
    names = {name for name, _ in module.named_parameters(recurse=False)}
    weight = getattr(module, "weight", None)
    return names <= {"weight", "bias"} and isinstance(weight, torch.Tensor) and weight.dim() == 1


def check_reached(network: Any, wanted: Sequence[str], reached: Sequence[str]) -> None:
    """Refuse layers that no calibration row came to.

    Args:
        network: The network; layers outside its decoder layers are not asked for.
        wanted: Names of the layers to quantise.
        reached: Names of the layers that were fed.

    Raises:
        InvalidDataError: A linear layer of a decoder layer was never called.
    """
    inside = f"{decoder_layers(network)[0]}."
    missed = sorted({one for one in wanted if one.startswith(inside)} - set(reached))
    if missed:
        raise InvalidDataError(
            "a layer is never reached by the calibration rows",
            where=missed[0],
            expected="every layer that is quantised is fed",
            actual=f"{len(missed)} are not",
            advice="Name them in keep, or bring rows that reach them.",
        )
