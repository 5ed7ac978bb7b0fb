"""What is said of YAML files and values that are not what they should be."""

import difflib
from pathlib import Path
from typing import Any


def close_files(path: Path) -> str:
    """Return a `(did you mean ...?)` clause for a path that does not exist: similar YAML files beside it."""
    stems = {other.stem: other for other in sorted(path.parent.glob("*.y*ml"))} if path.parent.is_dir() else {}
    matches = difflib.get_close_matches(path.stem, stems, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(str(stems[match])) for match in matches)}?)" if matches else ""


def first_difference(there: Any, here: Any, key: str = "") -> str | None:
    """Name the first place where two parsed YAML values differ.

    Args:
        there: the value on record.
        here: the value now.
        key: dotted path of the two values, empty at the top.

    Returns:
        `<dotted key> is <here> now and <there> there`, or None when they are equal.
    """
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*there, *(name for name in here if name not in there)]:
            path = f"{key}.{name}" if key else str(name)
            if name not in here:
                return f"{path} is absent now and {_short(there[name])} there"
            if name not in there:
                return f"{path} is {_short(here[name])} now and absent there"
            if difference := first_difference(there[name], here[name], path):
                return difference
        return None
    # repr tells 1 from True and from 1.0, and finds two NaN equal.
    if repr(there) != repr(here):
        return f"{key or 'its content'} is {_short(here)} now and {_short(there)} there"
    return None


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
