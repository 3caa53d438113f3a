"""``kolm algorithms``: what it shows of an algorithm."""

from tests.cli.command import kolm


def test_a_stage_is_shown_with_the_roles_that_its_defaults_ask_for():
    """RECIPE-26."""
    said = kolm("algorithms", "show", "grpo").out
    needs = said[said.index("needs:") : said.index("parameters:")]
    recipe = said[said.index("in a recipe:") :]
    assert "reward (code, with reward_by = file)" in needs
    assert "reward_model (model, with reward_by = model)" in needs
    assert 'reward = "reward.py"' in recipe
    assert "reward_model" not in recipe


def test_a_stage_that_mixes_adapters_is_shown_with_where_they_start():
    """MOE-45: a stage starts from the one before unless it says otherwise."""
    said = kolm("algorithms", "show", "x-lora").out
    recipe = said[said.index("in a recipe:") :]
    assert 'adapters = ["train-1", "train-2"]' in recipe
    assert 'from = "base"' in recipe
    assert "from =" not in kolm("algorithms", "show", "moe-lora").out
