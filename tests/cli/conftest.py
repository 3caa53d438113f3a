import pytest


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user without any settings."""
    for name in ("KOLM_KEY", "KOLM_TRUST", "KOLM_STORE", "KOLM_PASSPHRASE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / ".config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / ".local/share"))
    return folder
