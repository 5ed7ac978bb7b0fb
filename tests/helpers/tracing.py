"""A fixture for tests that compile."""

import sys

import pytest


@pytest.fixture(autouse=True)
def untraced():
    """Without coverage's tracing, which would follow torch's compiler through all its Python and double the time."""
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)
