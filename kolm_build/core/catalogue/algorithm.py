"""What the catalogue says of one algorithm (spec/algorithms.md).

An algorithm stands on one of four axes. An *objective* is what a stage of a recipe minimises; an
*adapter* is which numbers it may change; an *optimiser* is how it changes them. A stage names one
of each, so every objective goes with every adapter that it can go with, and each is one row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kolm_build.core.bounded import MANY, Params, choice, decimal, integer
from kolm_build.core.decimals import parse_decimal, render_decimal
from kolm_build.core.derivation import Param
from kolm_build.core.fields import Fields
from kolm_build.errors import InvalidRecordError

OBJECTIVE = "objective"
ADAPTER = "adapter"
OPTIMISER = "optimiser"
FEDERATION = "federation"
AXES = (OBJECTIVE, ADAPTER, OPTIMISER, FEDERATION)

FAMILIES = (
    "supervised",
    "preference",
    "reward",
    "reinforcement",
    "distillation",
    "mixture",
    "merging",
    "federated",
    "adapter",
    "optimiser",
)

ITERATIONS = "iterations"
"""The parameter of objectives that use completions again: for how many optimiser steps in a row."""

ALL_LINEAR = "all-linear"
FULL = "full"
"""The adapter that changes every weight: what its stage makes is the model itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integer:
    """A parameter that is a whole number.

    Attributes:
        name: Its key in a recipe.
        default: Its value where a recipe is silent.
        least: The least value.
        most: The greatest value.
        help: What it means, with its unit, in a few words.
    """

    name: str
    default: int
    least: int = 0
    most: int = MANY
    help: str

    def read(self, fields: Fields) -> Param:
        """Its value in a recipe."""
        return integer(fields, self.name, least=self.least, most=self.most, default=self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decimal:
    """A parameter that is a decimal number, as text, from 0 to `most`.

    Attributes:
        name: Its key in a recipe.
        default: Its value where a recipe is silent, in plain form.
        most: The greatest value.
        help: What it means, with its unit, in a few words.
    """

    name: str
    default: str
    most: str = "1"
    help: str

    def read(self, fields: Fields) -> Param:
        """Its value in a recipe, in plain form."""
        return decimal(fields, self.name, most=self.most, default=self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decimals:
    """A parameter that is a list of decimal numbers, as text with commas between.

    Attributes:
        name: Its key in a recipe.
        default: Its value where a recipe is silent, in plain form.
        least: The least value of each number.
        most: The greatest value of each number.
        help: What it means, with its unit, in a few words.
    """

    name: str
    default: str
    least: str = "0"
    most: str = "1"
    help: str

    def read(self, fields: Fields) -> Param:
        """Its value in a recipe, each number in plain form; their order is kept."""
        given = fields.text(self.name, default=self.default)
        return ",".join(self._plain(part.strip()) for part in given.split(","))

    def _plain(self, text: str) -> str:
        try:
            number = parse_decimal(text)
        except InvalidRecordError as error:
            raise error.under(self.name) from None
        if not parse_decimal(self.least) <= number <= parse_decimal(self.most):
            raise InvalidRecordError(
                "out of range",
                where=self.name,
                expected=f"{self.least} to {self.most}",
                actual=repr(text),
            )
        return render_decimal(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A parameter that is one of a few words.

    Attributes:
        name: Its key in a recipe.
        options: The words.
        default: The one that is meant where a recipe is silent.
        help: What it means, in a few words.
    """

    name: str
    options: tuple[str, ...]
    default: str
    help: str

    def read(self, fields: Fields) -> Param:
        """Its value in a recipe."""
        return choice(fields, self.name, self.options, default=self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """A parameter that names linear layers.

    Attributes:
        name: Its key in a recipe.
        default: Which are meant where a recipe is silent.
        help: What it means, in a few words.
    """

    name: str
    default: str = ALL_LINEAR
    help: str

    def read(self, fields: Fields) -> Param:
        """The names, sorted, so that their order is not a difference."""
        given = fields.text(self.name, default=self.default)
        names = sorted({part.strip() for part in given.split(",")})
        plain = all(re.fullmatch(r"[A-Za-z0-9_.]+", part) for part in names)
        if names != [ALL_LINEAR] and not plain:
            raise InvalidRecordError(
                "not names of layers",
                where=self.name,
                expected=f"{ALL_LINEAR}, or such as q_proj,v_proj",
            )
        return ",".join(names)


Parameter = Integer | Decimal | Decimals | Choice | Modules


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Something that an algorithm needs beside a model and rows.

    Attributes:
        name: The key in a recipe, and the name of the step's input: ``teacher``, ``reward``.
        kind: ``model`` (``base``, the name of an earlier stage, or a ``[models.NAME]``), ``models``
            (a list of those; the inputs are NAME-1, NAME-2, …), ``adapters`` (a list of earlier
            stages, whose adapters are the inputs NAME-1, NAME-2, …), ``logits`` (a model, whose
            logits over the stage's rows are kept by a step of their own and are the input
            ``logits``), ``code`` (a Python file of the recipe's folder) or ``data`` (a file or
            folder of the recipe's folder).
        required: Whether a recipe must name it, whatever its parameters are.
        used_with: The parameter and its value with which a recipe must name it, and without which
            it may not; None for a role that no parameter decides about.
        recorded: Whether a recipe may leave it out, and bring recorded answers with a provenance
            as the stage's rows instead (spec/dataset.md).
        help: What it is, in a few words.
    """

    name: str
    kind: str
    required: bool = True
    used_with: tuple[str, str] | None = None
    recorded: bool = False
    help: str

    def needed(self, params: Mapping[str, Param]) -> bool:
        """Whether a stage with `params` must name it."""
        if self.used_with is None:
            return self.required
        parameter, value = self.used_with
        return params[parameter] == value


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One row of the catalogue.

    Attributes:
        id: Its name in a recipe: lower case, with hyphens.
        axis: One of `AXES`.
        family: One of `FAMILIES`.
        title: Its name in full.
        paper: Where it is from: ``arXiv:2305.18290``, or a citation.
        minimises: The formula of an objective, or what an adapter or optimiser does, in a line.
        schema: What a row of its data holds (spec/dataset.md): ``answers``, ``texts``, ``pairs``,
            ``feedback``, ``prompts``, ``steps``, ``rationales``; ``none`` for one without rows;
            ``any`` for adapters and optimisers.
        parameters: Its own parameters, beside those that its axis shares.
        roles: What else it needs.
        step: The step that runs an objective; empty for adapters and optimisers.
        backing: Which class or function does the work, such as ``peft.LoraConfig``.
        oracle: Whose implementation the tests compare it with.
        passes: What a row's token costs, in forward and backward passes: ``1 forward, 1 backward``.
        certified: Numerics classes in which its bytes are shown to be equal.
        resumable: Whether a training can be put aside after any optimiser step and gone on with.
        trains: Whether its stage trains by gradients, and so takes an adapter and an optimiser.
        mergeable: Whether an adapter's numbers can be put into the weights that it changes, which
            gives a plain model.
        attachable: Whether a model can be judged, packaged and run with an adapter that cannot be
            merged beside its weights.
        whole: Whether an adapter's stage gives a whole model, and nothing to be merged.
        low_rank: Whether an adapter is written as a LoRA, W + s B A, of the model that its stage
            starts from, so that it can be mixed with others.
    """

    id: str
    axis: str = OBJECTIVE
    family: str
    title: str
    paper: str
    minimises: str
    schema: str
    parameters: tuple[Parameter, ...] = ()
    roles: tuple[Role, ...] = ()
    step: str = ""
    backing: str
    oracle: str
    passes: str
    certified: tuple[str, ...] = ("portable-1",)
    resumable: bool = True
    trains: bool = True
    mergeable: bool = True
    attachable: bool = False
    whole: bool = False
    low_rank: bool = False


def read_parameters(parameters: Sequence[Parameter], fields: Fields) -> Params:
    """The values of `parameters` in a recipe, sorted by name, defaults filled in.

    Of two parameters with one name the later one counts: an objective may have a default of its
    own for what all training shares.
    """
    by_name = {one.name: one for one in parameters}
    return tuple((name, by_name[name].read(fields)) for name in sorted(by_name))
