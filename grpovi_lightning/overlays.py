"""A class that a later file or argument names: it starts from its own defaults, plus what the files wrote for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import _typehints


@contextmanager
def own_defaults() -> Iterator[None]:
    """Let a parser forget the defaults of a class in whose place another one was named.

    The parser fills defaults in at the end. Where a signature has a class for its default, such as AdamW, it would
    keep that one's weight decay for any optimizer that knows the word; nothing public changes that.
    """
    drop_unknown = _typehints.discard_init_args_on_class_path_change

    def drop(parser: Any, old: Any, new: Any) -> None:
        if _typehints.sub_defaults.get() and old and "init_args" in old and old["class_path"] != new["class_path"]:
            old.pop("init_args")
        else:
            drop_unknown(parser, old, new)

    _typehints.discard_init_args_on_class_path_change = drop
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = drop_unknown
