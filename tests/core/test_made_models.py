"""Models of a recipe that a script makes of another one."""

import pytest

from tests.core.test_pipeline import edges
from tests.support.staged import HEAD, made, refused, stage

pytestmark = pytest.mark.usefixtures("catalogue")

SMALL = """
[models.small]
of = "big"
script = "small.py"
format = "safetensors"
"""


@pytest.mark.parametrize("name", ["small", "a"])
@pytest.mark.parametrize(("of", "node"), [("base", "base.out"), ("big", "model-big.out")])
def test_a_script_makes_a_model_of_another(name, of, node):
    """RECIPE-36: whatever the order of the two names."""
    small = SMALL.replace("small]", f"{name}]").replace('of = "big"', f'of = "{of}"')
    found = edges(made(stage("sft", from_=name), HEAD + small))
    assert found[f"model-{name}-source"] == {"source": node, "script": "path:small.py"}
    assert found[f"model-{name}"] == {"source": f"model-{name}-source.out"}
    assert found["train-1"]["model"] == f"model-{name}.out"


@pytest.mark.parametrize(
    ("before", "after", "where", "reason"),
    [
        ('of = "big"', 'of = "small"', "models.small.of", "unknown model"),
        ('of = "big"', 'of = "train-1"', "models.small.of", "unknown model"),
        ('of = "big"', 'of = "model-big"', "models.small.of", "unknown model"),
        ('script = "small.py"', 'from = "path:./x"', "models.small.of", "without a script"),
        ("script =", 'from = "path:./x"\nscript =', "models.small.script", "both"),
    ],
)
def test_a_model_of_another_that_is_not_one_is_refused(before, after, where, reason):
    """RECIPE-36."""
    error = refused(stage("sft"), HEAD + SMALL.replace(before, after))
    assert error.where == where
    assert reason in error.reason


def test_a_model_of_a_model_of_another_is_refused():
    """RECIPE-36."""
    third = SMALL.replace("small]", "third]").replace('of = "big"', 'of = "small"')
    assert refused(stage("sft"), HEAD + SMALL + third).where == "models.third.of"


def test_a_base_is_made_of_no_other_model():
    """RECIPE-36."""
    head = HEAD.replace('base = { script = "model.py"', 'base = { of = "big", script = "model.py"')
    assert refused(stage("sft"), head).where == "base.of"
