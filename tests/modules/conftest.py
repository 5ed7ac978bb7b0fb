"""Everything that trains here does so with two threads."""

from helpers.threads import two_threads  # noqa: F401
