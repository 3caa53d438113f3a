"""In whatever release: every setting decided, or the step refuses before it computes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kolm_build.errors import MachineMismatchError
from kolm_build.steps import _settings
from kolm_build.steps._settings import settings_of


@dataclass
class Pinned:
    """The release that the tables are made for."""

    rate: float = 1.0
    activation_checkpointing: bool | None = None
    dataloader_in_order: bool = True
    note: str = "default"


@dataclass
class Older:
    """One that has other names, and fewer and more settings."""

    rate: float = 1.0
    gradient_checkpointing: bool = True
    warmup_ratio: float | None = 0.1
    note: str = "default"


@dataclass
class Newer(Pinned):
    """One with a setting that nobody decided on."""

    surprise: bool = True


@dataclass
class Lacking:
    """One without a setting that matters."""

    activation_checkpointing: bool = False
    dataloader_in_order: bool = True
    note: str = "default"


@pytest.fixture(autouse=True)
def _version(monkeypatch):
    monkeypatch.setattr(_settings, "version", lambda _: "9.9")


VALUES = {"rate": 0.5, "activation_checkpointing": False, "dataloader_in_order": True}
INERT = {"note"}


def test_the_pinned_release_is_made_with_what_is_pinned():
    """SFT-14."""
    assert settings_of(Pinned, VALUES, INERT) == VALUES


def test_an_older_release_gets_former_names_and_what_it_still_has_is_pinned():
    """SFT-14."""
    made = Older(**settings_of(Older, VALUES, INERT))
    assert made == Older(rate=0.5, gradient_checkpointing=False, warmup_ratio=None)


def test_a_release_with_a_setting_nobody_decided_on_is_refused():
    """SFT-14."""
    with pytest.raises(MachineMismatchError) as refused:
        settings_of(Newer, VALUES, INERT)
    assert "9.9; not known here: surprise" in refused.value.actual
    assert refused.value.where.endswith("Newer")
    assert refused.value.advice


def test_a_release_without_a_pinned_setting_is_refused():
    """SFT-14."""
    with pytest.raises(MachineMismatchError) as refused:
        settings_of(Lacking, VALUES, INERT)
    assert "not there: rate" in refused.value.actual


@pytest.mark.ml
@pytest.mark.filterwarnings("ignore")
def test_the_pinned_releases_need_none_of_the_tables_for_others():
    """SFT-14."""
    import dataclasses

    from peft import LoraConfig
    from trl import SFTConfig

    known = {field.name for kind in (SFTConfig, LoraConfig) for field in dataclasses.fields(kind)}
    assert not known & _settings.NO_MORE.keys()
    assert known >= _settings.NOT_YET.keys() | _settings.FORMER_NAMES.keys()
