"""The table of what is learned: its arithmetic, and the examples that it is made of."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

from kolm_build.core.digest import Blob, Digest
from kolm_build.core.generic_step import LocalPath
from kolm_build.core.instantiation.instantiate import instantiate
from kolm_build.core.recipe import Recipe, parse_recipe
from kolm_build.core.tree import File
from kolm_build.errors import InvalidRecordError
from kolm_build.steps.table import STEPS
from kolm_build.surfaces.federated.federation import AGGREGATOR, Federation
from tests.core.samples import PLATFORM, lock
from tests.support.models import ROOT
from tools import learning
from tools.differences import (
    QUANTILES,
    Difference,
    OverSeeds,
    bootstrap_interval,
    percent,
    points,
    power,
    student_interval,
)
from tools.learning import Lesson, Line, Made, over_seeds, with_seed

EXAMPLES = sorted(path.parent for path in learning.EXAMPLES.glob("*/learning.toml"))
BY_NAME = [path.name for path in EXAMPLES]


def drawn(*, won: int, lost: int, rows: int) -> list[int]:
    """The sums of every possible draw of `rows` rows, sorted: the bootstrap, drawn in full."""
    outcomes = [1] * won + [-1] * lost + [0] * (rows - won - lost)
    return sorted(sum(draw) for draw in product(outcomes, repeat=rows))


@pytest.mark.parametrize(
    ("won", "lost", "rows"),
    [(2, 1, 5), (0, 0, 4), (4, 0, 4), (0, 4, 4), (1, 0, 6), (0, 2, 6), (3, 3, 6)],
)
def test_the_interval_is_that_of_all_draws_there_are(won, lost, rows):
    """ALG-31: the least sums that 2.5 % and 97.5 % of the draws do not exceed."""
    sums = drawn(won=won, lost=lost, rows=rows)
    low, high = bootstrap_interval(won=won, lost=lost, rows=rows)
    for bound, thousandths in ((low, 25), (high, 975)):
        assert 1000 * sum(one <= bound for one in sums) >= thousandths * len(sums)
        assert 1000 * sum(one < bound for one in sums) < thousandths * len(sums)


def test_two_rows_worked_by_hand():
    """ALG-31: one row won of two: of 4 draws 1 gives 0, 2 give 1, 1 gives 2."""
    assert power((0, 1, 1), 2) == [0, 0, 1, 2, 1]
    assert power((1, 2, 3), 2) == [1, 4, 10, 12, 9]
    assert bootstrap_interval(won=1, lost=0, rows=2) == (0, 2)


def test_an_interval_of_many_rows_is_near_that_of_the_normal_law():
    """ALG-31: 300 won, 100 lost of 1,290: 200 give or take 1.96 times 19.2."""
    assert bootstrap_interval(won=300, lost=100, rows=1290) == (162, 238)


@pytest.mark.parametrize(
    ("won", "lost", "better"), [(20, 5, True), (9, 8, False), (5, 20, False), (0, 0, False)]
)
def test_better_means_by_more_than_chance(won, lost, better):
    """ALG-32."""
    assert Difference(rows=100, baseline=40, tuned=40, won=won, lost=lost).is_better is better


def test_rows_are_compared_one_by_one():
    """ALG-30."""
    before = {"a": True, "b": False, "c": False, "d": True}
    after = {"a": True, "b": True, "c": True, "d": False}
    assert Difference.of(before, after) == Difference(rows=4, baseline=2, tuned=3, won=2, lost=1)


@pytest.mark.parametrize(
    ("said", "label_is_right", "by_text", "by_label"),
    [("left\n", False, True, False), ("lefty", True, False, True), ("", None, False, False)],
)
def test_a_row_is_right_by_what_is_said_or_by_its_label(said, label_is_right, by_text, by_label):
    """ALG-30."""
    row = {"answer": "left", "output": said, "correct": None, "label_correct": label_is_right}
    assert learning.is_right(row, "text") is by_text
    assert learning.is_right(row, "label") is by_label


@pytest.mark.parametrize("other", [{"a": True}, {"a": True, "c": True}, {}])
def test_two_models_that_were_asked_other_rows_are_not_compared(other):
    """ALG-30."""
    with pytest.raises(InvalidRecordError, match="same rows"):
        Difference.of(other, {"a": True, "b": True})
    with pytest.raises(InvalidRecordError, match="same rows"):
        Difference.of({}, {})


def test_an_interval_over_seeds_worked_by_hand():
    """ALG-35: 2, 4 and 9: their mean 5, its standard error the root of 13/3, times 4.303."""
    low, high = student_interval([2, 4, 9])
    assert (low + high) / 2 == 5
    assert float(high - low) / 2 == pytest.approx(4.303 * math.sqrt(13 / 3), abs=1e-3)
    assert ((high - low) / 2) ** 2 >= Fraction("4.303") ** 2 * Fraction(13, 3)


def test_seeds_that_agree_have_no_interval():
    """ALG-35."""
    assert student_interval([7, 7]) == (7, 7)


def integral(x: float, degrees: int) -> float:
    """The mass of Student's t between 0 and `x`, by Simpson's rule."""
    constant = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2)
    constant /= math.sqrt(degrees * math.pi)
    steps = 4000
    weights = [1, *[4, 2] * (steps // 2 - 1), 4, 1]
    heights = (
        (1 + (x * at / steps) ** 2 / degrees) ** (-(degrees + 1) / 2) for at in range(steps + 1)
    )
    return constant * x / steps / 3 * sum(map(math.prod, zip(weights, heights, strict=True)))


@pytest.mark.parametrize(("at", "quantile"), list(enumerate(QUANTILES, 1)))
def test_a_quantile_is_that_of_the_law(at, quantile):
    """ALG-35: 97.5 % of the law lie below it, to the last place that is written."""
    given = float(quantile)
    assert integral(given - 0.0006, at) < 0.475 < integral(given + 0.0006, at)


def over(*won: int) -> OverSeeds:
    return OverSeeds(
        each=tuple(Difference(rows=100, baseline=40, tuned=40 + n, won=n, lost=0) for n in won)
    )


@pytest.mark.parametrize(("won", "better"), [((10, 12, 14), True), ((0, 1, 30), False)])
def test_a_mean_over_seeds_is_better_by_more_than_they_differ(won, better):
    """ALG-32, ALG-35: 40 rows won in one seed alone may be that seed's luck."""
    assert over(*won).is_better is better


def test_a_line_of_several_seeds_says_so():
    """ALG-35."""
    lines = [replace(a_line(), difference=one) for one in over(10, 12, 14).each]
    made = over_seeds(lines[0].lesson, lines)
    wanted = ("100, 3 seeds", "40.0", "52.0", "+12.0 [+7.0, +17.0]", "36")
    assert made.cells()[4:9] == wanted
    assert made.digest == sha256(("ab" * 32 + "\n").encode() * 3).hexdigest()


def test_seeds_of_other_rows_are_not_taken_together():
    """ALG-35."""
    one = over(1).each[0]
    with pytest.raises(InvalidRecordError, match="as many rows"):
        OverSeeds(each=(one, replace(one, rows=90)))


def test_a_recipe_is_built_with_another_seed():
    """ALG-35: and with no seed of anything else."""
    text = '[split]\nseed = "learning"\n\n[numerics]\nseed = 1\n'
    assert with_seed(text, 12) == text.replace("seed = 1", "seed = 12")
    for other in ("", text + text):
        with pytest.raises(InvalidRecordError, match="one line with a seed"):
            with_seed(other, 12)


@pytest.mark.parametrize("seeds", ["[1]", "[1, 1]", "[1, -2]", "[1, 'b']", str(list(range(30)))])
def test_seeds_that_no_interval_is_made_of_are_refused(tmp_path, seeds):
    """ALG-35."""
    lines = ("version = 1", "family = 'f'", "task = 't'", "tuned = 'a'", "model = 'm'")
    more = ("measure = 'text'", f"seeds = {seeds}", "[[baseline]]", "name = 'n'", "node = 'b'")
    (tmp_path / "learning.toml").write_text("\n".join((*lines, *more)))
    with pytest.raises(InvalidRecordError, match="seed"):
        Lesson.read(tmp_path)


class Seeded(learning.Classroom):
    """A classroom that builds nothing, and tells what it was to build."""

    def _lines_of(self, lesson: Lesson) -> list[Line]:
        text = (lesson.project / "kolm.toml").read_text("utf-8")
        (seed,) = (
            int(line[7:])
            for line in text.splitlines()
            if line.startswith("seed = ") and '"' not in line
        )
        return [replace(a_line(), lesson=lesson, difference=over(seed).each[0])]


def test_each_seed_is_a_recipe_of_its_own(tmp_path):
    """ALG-35."""
    lesson = replace(Lesson.read(learning.EXAMPLES / "sft"), seeds=(21, 23))
    (line,) = Seeded(place=tmp_path, threads=1).lines(lesson)
    assert [one.won for one in line.difference.each] == [21, 23]
    assert line.lesson == lesson
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sft-seed-21", "sft-seed-23"]


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (1, 3, "+33.3"),
        (2, 3, "+66.7"),
        (0, 5, "0.0"),
        (-1, 8, "-12.5"),
        (1, 2000, "+0.1"),
        (-1, 9999, "0.0"),
    ],
)
def test_percents_have_one_place(part, whole, text):
    assert points(part, whole) == text


def test_a_percentage_has_no_plus():
    assert percent(3, 4) == "75.0"


@pytest.mark.parametrize("folder", EXAMPLES, ids=BY_NAME)
def test_a_lesson_names_nodes_of_its_recipe(folder):
    """ALG-33: both models of a comparison are outputs of a recipe, and so is its evaluation."""
    lesson, recipe = Lesson.read(folder), recipe_of(folder)
    made = instantiate(recipe, lock(recipe), steps=STEPS, platform=PLATFORM)
    for target in lesson.targets:
        assert made.find(target)
    evaluations = [made.nodes[name] for name in (lesson.tuned, *lesson.baselines.values())]
    assert {one.step for one in evaluations} == {"evaluate"}
    assert len({dict(one.inputs)["holdout"] for one in evaluations}) == 1
    assert len({one.params for one in evaluations}) == 1
    assert len({dict(one.inputs)["model"] for one in evaluations}) == len(evaluations)
    assert dict(made.nodes[lesson.tuned].inputs)["model"] == made.find(lesson.model)


@pytest.mark.parametrize("folder", EXAMPLES, ids=BY_NAME)
def test_every_file_that_a_recipe_names_is_there_or_made_by_its_rounds(folder):
    """ALG-33."""
    lesson = Lesson.read(folder)
    made = {lesson.rounds.adapter} if lesson.rounds else set()
    for path in local_files(recipe_of(folder)):
        assert path in made or (lesson.project / path).is_file(), path


PARTIES = sorted(learning.EXAMPLES.glob("*/*/kolm.toml"))


@pytest.mark.parametrize("path", PARTIES, ids=lambda path: path.parent.name)
def test_a_party_of_a_federation_has_the_nodes_that_it_needs(path):
    recipe = parse_recipe(path.read_text("utf-8"), file=str(path))
    made = instantiate(recipe, lock(recipe), steps=STEPS, platform=PLATFORM)
    needed = {"base"} if path.parent.name == AGGREGATOR else {"base", "dataset"}
    assert needed <= made.nodes.keys()


@pytest.mark.parametrize(
    "path", sorted(learning.EXAMPLES.glob("*/federation.toml")), ids=lambda path: path.parent.name
)
def test_a_federation_names_files_that_are_there_or_laid_out(path):
    federation = Federation.read(path.parent, {})
    files = {one for sources in federation.files.values() for one in sources} - {"inputs"}
    assert all((path.parent / one).exists() for one in files)
    assert set(federation.files) == {one.parent.name for one in PARTIES}


def recipe_of(folder: Path) -> Recipe:
    path = Lesson.read(folder).project / "kolm.toml"
    return parse_recipe(path.read_text("utf-8"), file=str(path))


def local_files(recipe: Recipe) -> set[str]:
    sources = {source.path.removeprefix("./") for source in recipe.sources if source.is_local}
    named = {
        one.path.removeprefix("./")
        for step in recipe.steps
        for _, one in step.inputs
        if isinstance(one, LocalPath)
    }
    return sources | named


class Claims:
    """A store that knows the processor time, in ms, of each derivation."""

    def __init__(self, **spent: int | None) -> None:
        self._spent = {digest(name): ms for name, ms in spent.items()}

    def realisations(self, resolved: Digest, output: str) -> list[SimpleNamespace]:
        del output
        ms = self._spent[resolved]
        return [SimpleNamespace(circumstances={} if ms is None else {"cpu_ms": ms})]


def digest(name: str) -> Digest:
    return Digest.of_blob(name.encode())


def three_nodes() -> tuple[SimpleNamespace, SimpleNamespace]:
    """Instance and plan of ``model``, made from ``base``, of what is fetched, and of ``other``."""
    needs = {"fetched": (), "base": ("fetched",), "model": ("base",), "other": ("base",)}
    nodes = {
        digest(name): SimpleNamespace(
            is_fixed=name == "fetched",
            outputs=(("out", None),),
            needs=[SimpleNamespace(derivation=digest(one)) for one in above],
        )
        for name, above in needs.items()
    }
    instance = SimpleNamespace(
        derivations=nodes, find=lambda name: SimpleNamespace(derivation=digest(name))
    )
    return instance, SimpleNamespace(resolved={one: one for one in nodes})


def test_processor_time_is_that_of_all_that_a_model_is_made_from():
    """ALG-34."""
    instance, plan = three_nodes()
    store = Claims(base=1400, model=2300, other=9000)
    made = Made(prepared=SimpleNamespace(instance=instance), plan=plan, store=store)
    assert made.cpu_s("model") == 4
    assert made.cpu_s("base") == 1


def test_a_time_that_no_claim_tells_is_not_guessed():
    """ALG-34."""
    instance, plan = three_nodes()
    store = Claims(base=None, model=2300, other=9000)
    made = Made(prepared=SimpleNamespace(instance=instance), plan=plan, store=store)
    with pytest.raises(InvalidRecordError, match="what it took"):
        made.cpu_s("model")


def test_what_is_beside_the_weights_is_what_was_trained():
    """An adapter that stays beside its base is told, and not the base that many have."""
    kept = {"adapter_model.safetensors": b"adapter", "model.safetensors": b"base"}
    for names in (["model.safetensors"], list(kept)):
        blobs = {name: Blob.of(kept[name]) for name in names}
        nodes = {
            name: File(b3=one.b3, sha256=one.sha256, size_bytes=9) for name, one in blobs.items()
        }
        made = Made(
            prepared=SimpleNamespace(instance=SimpleNamespace(find=str)),
            plan=SimpleNamespace(contents={"model": digest("tree")}),
            store=Trees(tuple(nodes.items())),
        )
        assert made.weights("model") == blobs[sorted(names)[0]].sha256.hex


class Trees:
    """A store of one tree."""

    def __init__(self, entries: tuple[tuple[str, File], ...]) -> None:
        self._entries = entries

    def tree(self, content: Digest) -> SimpleNamespace:
        del content
        return SimpleNamespace(entries=self._entries)


def a_line(name: str = "sft", *, tuned: int = 70, won: int = 40) -> Line:
    lesson = Lesson.read(learning.EXAMPLES / "sft")
    difference = Difference(rows=100, baseline=40, tuned=tuned, won=won, lost=10)
    return Line(
        lesson=replace(lesson, name=name),
        baseline="untuned",
        difference=difference,
        cpu_s=12,
        digest="ab" * 32,
    )


class Room:
    """A classroom whose lines are known."""

    def __init__(self, *lines: Line) -> None:
        self._lines = lines

    def lines(self, lesson: Lesson) -> list[Line]:
        return [line for line in self._lines if line.lesson.name == lesson.name]


@pytest.mark.parametrize(("won", "status"), [(40, 0), (14, 1)])
def test_the_table_fails_where_a_model_is_not_better(won, status, capsys):
    """ALG-32."""
    lines = [a_line("one"), a_line("two", won=won)]
    found = learning.compare(Room(*lines), [line.lesson for line in lines], write=False)
    assert found == status
    assert ("NOT BETTER" in capsys.readouterr().out) is bool(status)


def test_a_table_keeps_what_it_says_of_other_examples(tmp_path, monkeypatch):
    document = tmp_path / "learning.md"
    document.write_text(f"before\n{learning.BEGIN}{learning.END}after\n")
    monkeypatch.setattr(learning, "DOCUMENT", document)
    learning.write_document([a_line("one")])
    learning.write_document([a_line("two")])
    learning.write_document([a_line("one", tuned=80, won=50)])
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    rows = [line.split(" | ") for line in text.splitlines() if " | untuned | " in line]
    assert [row[1] for row in rows] == ["one", "two"]
    assert [row[6] for row in rows] == ["80.0", "70.0"]


def test_a_model_that_is_not_better_is_not_written(tmp_path, monkeypatch):
    """ALG-32."""
    document = tmp_path / "learning.md"
    document.write_text(f"{learning.BEGIN}{learning.END}")
    monkeypatch.setattr(learning, "DOCUMENT", document)
    line = a_line(won=10)
    assert learning.compare(Room(line), [line.lesson], write=True) == 1
    assert document.read_text() == f"{learning.BEGIN}{learning.END}"


@pytest.mark.parametrize(
    ("change", "where"),
    [("measure = 'loss'", "measure"), ("", "measure"), ("measure = 'label'\nmore = 1", "more")],
)
def test_a_lesson_is_read_strictly(tmp_path, change, where):
    lines = ("version = 1", "family = 'f'", "task = 't'", "tuned = 'a'", "model = 'm'", change)
    (tmp_path / "learning.toml").write_text(
        "\n".join((*lines, "[[baseline]]\nname = 'n'\nnode = 'b'"))
    )
    with pytest.raises(InvalidRecordError) as caught:
        Lesson.read(tmp_path)
    assert where in str(caught.value)


def test_a_lesson_without_a_baseline_is_refused(tmp_path):
    lines = ("version = 1", "family = 'f'", "task = 't'", "tuned = 'a'", "model = 'm'")
    (tmp_path / "learning.toml").write_text(
        "\n".join((*lines, "measure = 'text'", "baseline = []"))
    )
    with pytest.raises(InvalidRecordError, match="nothing to compare"):
        Lesson.read(tmp_path)


def test_the_documents_table_has_every_example_and_no_other():
    table = (
        (ROOT / "docs" / "learning.md").read_text().split(learning.BEGIN)[1].split(learning.END)[0]
    )
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert {row[1] for row in rows} == set(BY_NAME)
    baselines = {(path.name, name) for path in EXAMPLES for name in Lesson.read(path).baselines}
    assert {(row[1], row[2]) for row in rows} == baselines
