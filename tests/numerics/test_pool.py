"""The pool of threads of the libraries without PyTorch."""

from __future__ import annotations

import pytest

from tests.numerics.testing_library import Library


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("failing", [0, 1, 63])
def test_what_a_task_throws_comes_back_and_the_next_job_is_whole(threads, failing):
    """GEN-73."""
    library = Library()
    for _ in range(20):
        assert library.has_thrown(threads, 64, failing)
