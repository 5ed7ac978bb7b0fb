"""The argument parser's errors, which run over many lines, in one line."""

import difflib
import importlib
import inspect
import re

_NOISE = re.compile(
    r"^(Does not validate against any of the Union subtypes|Subtypes: |Errors:|- Expected a <class 'NoneType'>"
    r"|Given value type: |Given value: )"
)
_VALUE = re.compile(r"^Given value: ([^{\n]{1,60})$")
_REJECTED = re.compile(r"Option '([^']+)' is not accepted")
_CLASS = re.compile(r"class_path '([^']+)'")


def one_line(message: str) -> str:
    r"""Join the lines that name the culprit, and suggest the nearest known name for a misspelt key.

    >>> one_line("Errors:\n  - Option 'sed' is not accepted\n")
    "Option 'sed' is not accepted; see --print_config for the keys there are"
    """
    lines = [line.strip() for line in message.splitlines()]
    kept = [line for line in lines if line and not _NOISE.match(line)]
    text = " ".join(line.removeprefix("- ") for line in kept)
    got = next((value[1] for line in lines if (value := _VALUE.match(line))), None)
    text = text if got is None else f"{text}; got {got}"
    text = text if len(text) <= 500 else text[:497] + "..."
    rejected = _REJECTED.search(text)
    if rejected is None:
        return text
    paths = _CLASS.findall(text[: rejected.start()])
    known = _parameters(paths[-1]) if paths else []
    near = difflib.get_close_matches(rejected[1], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}" if known else ""
    return text + (hint or "; see --print_config for the keys there are")


def _parameters(class_path: str) -> list[str]:
    """Return the names of a class's arguments; none where it cannot be imported, as in a misspelt path."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    return [parameter for parameter in inspect.signature(found).parameters if parameter != "self"]
