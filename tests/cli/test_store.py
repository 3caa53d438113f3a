"""`kolm store`."""

import pytest

from tests.cli.command import kolm


@pytest.mark.parametrize("action", ["gc", "fsck", "roots", "du", "fsck --rebuild-index"])
def test_a_store_that_nobody_made_is_not_made_by_looking_after_it(tmp_path, action):
    told = kolm("store", *action.split(), "--store", str(tmp_path / "typo"))
    assert told.status == 2
    assert "there is no store here" in told.err
    assert not (tmp_path / "typo").exists()
