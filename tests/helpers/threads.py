"""Threads of torch in tests of reproducibility."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def two_threads() -> Iterator[None]:
    """`make test` gives each process one thread, under which nothing could come in another order.

    For the whole module, so that runs which its fixtures make have two as well: on some processors a product of
    matrices has other bits with another number of threads.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
