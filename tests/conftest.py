"""Settings that hold for every test."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile(
    "book",
    deadline=None,  # the first call of torch in a run takes over a second
    max_examples=50,
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("book")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Run what needs a browser last.

    It is the slowest, and playwright's event loop stays in this thread until
    the end, where tests that start one of their own would fail.
    """
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)
