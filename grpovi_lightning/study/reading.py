"""Reading YAML that a person wrote: every mistake becomes one line with got, expected and remedy."""

import difflib
from pathlib import Path
from typing import Any

import yaml

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.checking import kind


class _NoDuplicates(yaml.SafeLoader):
    """A safe loader that refuses a key written twice, because YAML would silently keep only the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            # Two `<<` merges in one mapping are legal; and a merged key may be overridden.
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise UserError(f"key {key_node.value!r} appears twice in one mapping (again on line {line})")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """Parse a YAML file whose top level is a mapping.

    Args:
        path: an existing file.

    Raises:
        UserError: when it cannot be read, is not YAML, repeats a key, or holds something else than a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_NoDuplicates)
    except UserError as error:
        raise UserError(f"{path}: {error}; keep one of them") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; expected a YAML file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {kind(content)}, expected a mapping of keys to values")
    return content


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
