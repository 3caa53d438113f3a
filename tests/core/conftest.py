import pytest

from tests.support.staged import use_catalogue


@pytest.fixture
def catalogue(monkeypatch):
    """A small catalogue of the tests' own in place of the product's."""
    use_catalogue(monkeypatch)
