"""What tests of compiled kernels share."""

from collections.abc import Iterator

import pytest
import torch

from raincast.models.fast import gates, loading


def forget() -> None:
    """What this process has loaded, and said."""
    for known in (gates._kernels, loading.say_once):
        known.cache_clear()


@pytest.fixture
def nothing_loaded() -> Iterator[None]:
    """Libraries are loaded anew, as the test has set it up; and once more after it."""
    forget()
    yield
    forget()


@pytest.fixture
def num_threads() -> Iterator[None]:
    """The test may set it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
