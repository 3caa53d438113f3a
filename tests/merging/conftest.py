"""The arithmetic of portable-1, begun once a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.merging.groups import INSIDE, arithmetic


@pytest.fixture(scope="module")
def portable() -> Iterator[None]:
    """Everything in the module is computed under the guard."""
    with arithmetic():
        INSIDE.append(True)
        yield
        INSIDE.pop()
