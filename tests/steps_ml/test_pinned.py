"""No upstream default decides a byte in silence."""

from __future__ import annotations

import dataclasses

import pytest

from kolm_build.steps import _pinned as pinned

# Importing the trainers takes ten seconds, so these run beside the tests that train.
pytestmark = [pytest.mark.ml, pytest.mark.filterwarnings("ignore")]


def sft_config():
    from trl import SFTConfig

    return SFTConfig


def lora_config():
    from peft import LoraConfig

    return LoraConfig


TABLES = {
    "SFTConfig": (sft_config, pinned.SFT_FROM_PARAMS, pinned.SFT_PINNED, pinned.SFT_INERT),
    "LoraConfig": (lora_config, pinned.LORA_FROM_PARAMS, pinned.LORA_PINNED, pinned.LORA_INERT),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_field_is_set_pinned_or_listed_with_a_reason(name):
    """SFT-1."""
    config, *tables = TABLES[name]
    fields = {field.name for field in dataclasses.fields(config())}
    listed = [key for table in tables for key in table]
    assert len(listed) == len(set(listed)), "a field stands in two tables"
    assert fields - set(listed) == set(), "new fields: pin them, or say why they are inert"
    assert set(listed) - fields == set(), "fields that are gone"


@pytest.mark.parametrize("name", TABLES)
def test_every_inert_field_has_a_reason(name):
    """SFT-1."""
    assert all(len(reason) > 10 for reason in TABLES[name][3].values())


def test_the_settings_are_what_the_tables_say(tmp_path):
    """SFT-1, SFT-7: pinned values survive the library's own post-processing."""
    from kolm_build.core.numerics import Numerics
    from kolm_build.steps import sft
    from kolm_build.steps._stage import Stage, sft_config
    from kolm_build.steps.adapters.lora import lora_config as lora

    given = {"learning_rate": "1e-3", "max_steps": 7, "schedule": "constant"}
    stage = Stage.parse(given, sft.TAKE)
    args = sft_config(stage.training, Numerics(cls="native-1", seed=5), tmp_path)
    assert (args.seed, args.data_seed, args.max_steps) == (5, 5, 7)
    assert args.lr_scheduler_type == "constant"
    assert not args.gradient_checkpointing
    assert not args.bf16
    assert args.report_to == []
    assert args.save_strategy == "no"
    assert lora(stage.change.params).target_modules == "all-linear"
    assert list(tmp_path.iterdir()) == []


def test_every_field_of_every_adapters_settings_is_accounted_for():
    """ADPT-4."""
    import peft

    from kolm_build.steps._pinned_adapters import PINNED

    for name, table in PINNED.items():
        fields = {field.name for field in dataclasses.fields(getattr(peft, name))}
        listed = [*table.recipe, *table.fixed, *table.inert]
        assert len(listed) == len(set(listed)), f"{name}: a field stands in two tables"
        assert fields - set(listed) == set(), f"{name}: new fields: pin them, or say why not"
        assert set(listed) - fields == set(), f"{name}: fields that are gone"
        assert all(len(reason) > 10 for reason in table.inert.values())
