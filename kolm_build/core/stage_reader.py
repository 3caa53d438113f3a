"""Reading a recipe's stages: what each minimises, on which rows, beside which models.

What a stage may and must name is the catalogue's to say (spec/recipe.md, spec/algorithms.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kolm_build.core.bounded import Params, integer, texts, unknown_name
from kolm_build.core.catalogue.algorithm import ITERATIONS, Algorithm, Role, read_parameters
from kolm_build.core.catalogue.common import TRAINING
from kolm_build.core.catalogue.table import ADAPTERS, OBJECTIVES, OPTIMISERS
from kolm_build.core.derivation import Param
from kolm_build.core.fields import Fields
from kolm_build.core.name import parse_part
from kolm_build.core.schemas import ANSWERS, NO_ROWS
from kolm_build.core.sections import ADAPTER, BASE, LOGITS, MODEL, NUMBERED, Data, Train
from kolm_build.core.source import PATH, parse_path, parse_script
from kolm_build.errors import InvalidRecordError

Pairs = tuple[tuple[str, str], ...]
Given = tuple[Role, str, str]
"""A role, the step's input, and what it is given: a node, or a path."""

_MODELS = ("model", "models", "logits")
_ADAPTERS = "adapters"


def read_stages(
    fields: Fields, *, sets: Mapping[str, Data], models: Collection[str]
) -> tuple[Train, ...]:
    """The stages under ``train``.

    Args:
        fields: The recipe.
        sets: Its ``[sets]``.
        models: The names of its ``[models]``.

    Raises:
        InvalidRecordError: A stage names something that is not there, stands later or does not
            fit, or is not as the catalogue says.
    """
    entries = fields.array("train")
    names = _names(entries, models)
    stages: list[Train] = []
    for index, entry in enumerate(entries):
        around = _Around(sets=sets, models=models, names=names, before=stages)
        try:
            stages.append(_stage(entry, around))
        except InvalidRecordError as error:
            raise error.under(f"train[{index}]") from None
    if stages and not (stages[-1].gives_model or _is_attachable(stages[-1])):
        raise _apart(stages[-1], where=f"train[{len(stages) - 1}].adapter")
    return tuple(stages)


def default_params(algorithm: str, *, adapter: str, optimiser: str) -> Params:
    """The parameters of a stage that names `algorithm`, `adapter` and `optimiser` alone."""
    rows = OBJECTIVES[algorithm], ADAPTERS[adapter], OPTIMISERS[optimiser]
    return _params(Fields({}), *rows)


def _names(entries: Sequence[object], models: Collection[str]) -> Sequence[str]:
    """What each stage is called: its `name`, else its number."""
    taken = {BASE, *models}
    names: list[str] = []
    for number, entry in enumerate(entries, 1):
        given = entry.get("name") if isinstance(entry, Mapping) else None
        name = given if type(given) is str else f"train-{number}"
        _check_label(name, where=f"train[{number - 1}].name")
        if name in taken or (NUMBERED.fullmatch(name) and name != f"train-{number}"):
            raise InvalidRecordError(
                "a name that another model has",
                where=f"train[{number - 1}].name",
                expected="a name of its own, unlike base, train-K and those of [models]",
                actual=repr(name)[:80],
            )
        taken.add(name)
        names.append(name)
    return names


def _check_label(text: str, *, where: str) -> None:
    try:
        parse_part(text)
    except InvalidRecordError as error:
        raise error.under(where) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Around:
    """What a stage may refer to.

    Attributes:
        sets: The recipe's sets of rows.
        models: The names of its further models.
        names: What its stages are called, all of them.
        before: The stages that stand before this one.
    """

    sets: Mapping[str, Data]
    models: Collection[str]
    names: Sequence[str]
    before: Sequence[Train]

    @property
    def name(self) -> str:
        """What the stage itself is called."""
        return self.names[len(self.before)]

    @property
    def last(self) -> str:
        """The model that a stage starts from unless it says another."""
        return self.names[len(self.before) - 1] if self.before else BASE

    def model(self, text: str, where: str) -> str:
        """The node of the model that `text` names.

        Raises:
            InvalidRecordError: There is none, or none yet, or it is a base with an adapter apart.
        """
        stages = self._numbers()
        if text in stages:
            return self._stage(stages[text], text, where)
        if text == BASE:
            return text
        if text in self.models:
            return f"model-{text}"
        raise unknown_name("model", text, self._known(), where=where)

    def adapter(self, text: str, start: str, where: str) -> str:
        """The node of the stage that `text` names, whose LoRA is of the model `start`.

        Raises:
            InvalidRecordError: There is none, or none yet; or it gives no LoRA, or one of another
                model.
        """
        stages = self._numbers()
        if text not in stages:
            raise unknown_name("stage", text, self.names[: len(self.before)], where=where)
        stage = self._earlier(stages[text], text, where)
        adapter = str(dict(stage.params).get("adapter", ""))
        if stage.output != ADAPTER or not ADAPTERS[adapter].low_rank:
            raise InvalidRecordError(
                "this stage gives no LoRA that can be mixed with others",
                where=where,
                expected=" or ".join(name for name, row in ADAPTERS.items() if row.low_rank),
                actual=f"{stage.name!r}, adapter {adapter or stage.algorithm!r}",
            )
        trained_on = dict(stage.models)["model"]
        if trained_on != start:
            raise InvalidRecordError(
                "an adapter of another model",
                where=where,
                expected=f"a stage that starts from {start}",
                actual=f"{stage.name!r}, which starts from {trained_on}",
                advice="Give both stages the same `from`.",
            )
        return f"train-{stages[text]}"

    def _numbers(self) -> Mapping[str, int]:
        """The number of each stage, by its name and as ``train-K``."""
        stages = {name: number for number, name in enumerate(self.names, 1)}
        return stages | {f"train-{number}": number for number in range(1, len(self.names) + 1)}

    def _stage(self, number: int, text: str, where: str) -> str:
        stage = self._earlier(number, text, where)
        if not stage.gives_model:
            raise _apart(stage, where=where)
        return f"train-{number}"

    def _earlier(self, number: int, text: str, where: str) -> Train:
        """The stage `number`, which must stand before this one."""
        if number > len(self.before):
            raise InvalidRecordError(
                "a stage that does not stand before this one",
                where=where,
                expected="one of " + ", ".join(self._known()),
                actual=repr(text)[:80],
            )
        return self.before[number - 1]

    def _known(self) -> Sequence[str]:
        return (BASE, *sorted(self.models), *self.names[: len(self.before)])


def _is_attachable(stage: Train) -> bool:
    """Whether a model can be used with the stage's adapter beside its weights."""
    return ADAPTERS[str(dict(stage.params)["adapter"])].attachable


def _apart(stage: Train, *, where: str) -> InvalidRecordError:
    return InvalidRecordError(
        "this stage's adapter cannot be put into the weights, so it gives no plain model",
        where=where,
        expected="a stage whose adapter can be merged, such as lora or full",
        actual=f"{stage.name!r}, adapter {dict(stage.params).get('adapter', stage.algorithm)!r}",
        advice="Nothing may build on such a stage"
        + (", but it may be the last one." if _is_attachable(stage) else " or judge it."),
    )


def _stage(value: object, around: _Around) -> Train:
    fields = Fields(value)
    name = fields.text("name", default=around.name)
    algorithm = _row(fields, "algorithm", OBJECTIVES)
    adapter = _row(fields, "adapter", ADAPTERS, "lora") if algorithm.trains else None
    optimiser = _row(fields, "optimiser", OPTIMISERS, "adamw") if algorithm.trains else None
    rows = _rows(fields, algorithm, around)
    start = around.model(fields.text("from", default=around.last), "from")
    used = [one for one in (algorithm, adapter, optimiser) if one is not None]
    roles = [role for row in used for role in row.roles]
    given = [one for role in roles for one in _given(fields, role, around, start)]
    params = _params(fields, algorithm, adapter, optimiser)
    made = Train(
        name=name,
        algorithm=algorithm.id,
        step=algorithm.step,
        rows=rows,
        models=tuple(sorted([("model", start), *_of(_MODELS, given)])),
        adapters=_of((_ADAPTERS,), given),
        code=_of(("code",), given),
        data=_of(("data",), given),
        output=ADAPTER if adapter is not None and not adapter.whole else MODEL,
        mergeable=algorithm.mergeable and (adapter is None or adapter.mergeable),
        params=params,
        checkpoints=_checkpoints(fields, params, used),
    )
    fields.done()
    _check_roles(roles, {role.name for role, _, _ in given}, dict(params))
    return made


CHECKPOINT_STEPS = "checkpoint_steps"
MAX_CHECKPOINTS = 1000


def _checkpoints(fields: Fields, params: Params, rows: Sequence[Algorithm]) -> tuple[int, ...]:
    """The optimiser steps after which the training of a stage is put aside."""
    if not rows[0].trains:
        return ()
    every = integer(fields, CHECKPOINT_STEPS, least=0, default=0)
    if not every:
        return ()
    for row in rows:
        if not row.resumable:
            raise InvalidRecordError(
                f"a training with {row.id} cannot be put aside", where=CHECKPOINT_STEPS
            )
    last = int(dict(params)["max_steps"])
    if last <= every or (last - 1) // every > MAX_CHECKPOINTS:
        raise InvalidRecordError(
            "checkpoints need a known number of steps",
            where=CHECKPOINT_STEPS,
            expected=f"max_steps above it, and at most {MAX_CHECKPOINTS} checkpoints",
            actual=f"{CHECKPOINT_STEPS} = {every}, max_steps = {last}",
        )
    _check_iterations(every, int(dict(params).get(ITERATIONS, 1)))
    return tuple(range(every, last, every))


def _check_iterations(every: int, iterations: int) -> None:
    """Refuse to put a training aside while its completions are to be used again (RL-31)."""
    if every % iterations:
        raise InvalidRecordError(
            "a training cannot be put aside between steps with the same completions",
            where=CHECKPOINT_STEPS,
            expected=f"a multiple of {ITERATIONS}",
            actual=f"{CHECKPOINT_STEPS} = {every}, {ITERATIONS} = {iterations}",
        )


def _row(
    fields: Fields, key: str, rows: Mapping[str, Algorithm], default: str | None = None
) -> Algorithm:
    """The row of the catalogue that `key` names."""
    name = fields.text(key) if default is None else fields.text(key, default=default)
    if name not in rows:
        raise unknown_name(key, name, rows, where=key)
    return rows[name]


def _rows(fields: Fields, algorithm: Algorithm, around: _Around) -> str | None:
    """The node of the stage's rows."""
    if algorithm.schema == NO_ROWS:
        return None
    for role in algorithm.roles:
        if role.recorded and not fields.has(role.name):
            return _recorded_rows(fields, role, around)
    name = fields.text("rows", default="")
    if not name and algorithm.schema == ANSWERS:
        return "dataset"
    expected = f"the name of a [sets.NAME] with schema = {algorithm.schema!r}"
    if not name:
        raise InvalidRecordError(
            "rows that are not answers", where="rows", expected=expected, actual="[data]"
        )
    if name not in around.sets:
        raise unknown_name("set of rows", name, around.sets, where="rows")
    if around.sets[name].schema != algorithm.schema:
        raise InvalidRecordError(
            "rows of another schema",
            where="rows",
            expected=expected,
            actual=f"{name!r} has schema {around.sets[name].schema!r}",
        )
    return f"dataset-{name}"


def _recorded_rows(fields: Fields, role: Role, around: _Around) -> str:
    """The node of the recorded answers that stand in the place of a model for `role`."""
    name = fields.text("rows", default="")
    expected = f"a model to ask, or rows of recorded answers: schema = {ANSWERS!r} and a provenance"
    if name and name not in around.sets:
        raise unknown_name("set of rows", name, around.sets, where="rows")
    if not name or around.sets[name].schema != ANSWERS:
        actual = f"none, and {name!r} has another schema" if name else "neither"
        raise InvalidRecordError("missing value", where=role.name, expected=expected, actual=actual)
    if around.sets[name].provenance is None:
        raise InvalidRecordError(
            "recorded answers of nobody",
            where="rows",
            expected=f"[sets.{name}.provenance] with vendor, model, date, licence and call_log",
            actual=f"{name!r} has none",
        )
    return f"dataset-{name}"


def _given(fields: Fields, role: Role, around: _Around, start: str) -> Iterator[Given]:
    """What the stage, which starts from the model of the node `start`, is given in `role`."""
    if not fields.has(role.name):
        if role.required and not role.recorded:
            raise InvalidRecordError("missing value", where=role.name, expected=role.help)
        fields.text(role.name, default="")  # asked for, so that a misspelt role gets a suggestion
    elif role.kind in ("models", _ADAPTERS):
        names = texts(fields, role.name, str)
        for number, name in enumerate(names, 1):
            where = f"{role.name}[{number - 1}]"
            node = (
                around.model(name, where)
                if role.kind == "models"
                else around.adapter(name, start, where)
            )
            yield role, f"{role.name}-{number}", node
        if not names:
            raise InvalidRecordError(f"no {role.kind}", where=role.name, expected=role.help)
    elif role.kind in ("model", "logits"):
        name = LOGITS if role.kind == "logits" else role.name
        yield role, name, around.model(fields.text(role.name), role.name)
    else:
        parse = parse_script if role.kind == "code" else _path
        yield role, role.name, fields.parsed(role.name, parse)


def _check_roles(
    roles: Sequence[Role], given: Collection[str], params: Mapping[str, Param]
) -> None:
    """Refuse a stage that lacks what a parameter asks for, or is given what none uses."""
    for role in roles:
        if role.used_with is None or role.needed(params) == (role.name in given):
            continue
        parameter, value = role.used_with
        if role.needed(params):
            raise InvalidRecordError(
                "missing value",
                where=role.name,
                expected=role.help,
                advice=f"{parameter} = {value!r} needs it.",
            )
        raise InvalidRecordError(
            "an input that nothing uses",
            where=role.name,
            expected=f"{parameter} = {value!r} beside it",
            actual=f"{parameter} = {params[parameter]!r}",
        )


def _path(text: str) -> str:
    return parse_path(text.removeprefix(PATH))


def _of(kinds: Collection[str], given: Sequence[Given]) -> Pairs:
    return tuple(sorted((name, value) for role, name, value in given if role.kind in kinds))


def _params(
    fields: Fields, algorithm: Algorithm, adapter: Algorithm | None, optimiser: Algorithm | None
) -> Params:
    """The stage's parameters: what all training shares, what its three rows add, their names.

    A step that serves several algorithms is told which one it is.
    """
    if adapter is None or optimiser is None:
        told = () if algorithm.step == algorithm.id else (("algorithm", algorithm.id),)
        return tuple(sorted((*read_parameters(algorithm.parameters, fields), *told)))
    rows = (*TRAINING, *algorithm.parameters, *adapter.parameters, *optimiser.parameters)
    words = (("adapter", adapter.id), ("optimiser", optimiser.id))
    return tuple(sorted((*read_parameters(rows, fields), *words)))
