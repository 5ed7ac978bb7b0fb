"""Threads of torch in tests of reproducibility."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """`make test` gives each process one thread, under which nothing could come in another order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
