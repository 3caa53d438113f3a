import pytest


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user without any settings."""
    for name in ("KEY", "TRUST", "STORE", "PASSPHRASE", "SUBSTITUTERS"):
        monkeypatch.delenv(f"KOLM_{name}", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / ".config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / ".local/share"))
    return folder
