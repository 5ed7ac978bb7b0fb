"""Reading YAML that a person wrote: every mistake becomes one line with got, expected and remedy."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from grpovi_lightning.errors import SECRET_NAME, UserError
from grpovi_lightning.run_record.checking import kind

_OPTIONS = ("--config", "-c")


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
    if content is None:
        raise UserError(f"{path} is empty, expected a mapping of keys to values")
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {kind(content)}, expected a mapping of keys to values")
    return content


def check_config_files(arguments: Sequence[str]) -> None:
    """Check the files that a command line names with `--config`, before a parser that would not say which is wrong.

    Raises:
        UserError: one is not YAML, repeats a key, holds something else than settings, or asks for a token or key of the
            environment, which would be written down with the settings.
    """
    for argument in arguments:
        _refuse_secrets(argument, "arguments")
    for option, value in zip(arguments, (*arguments[1:], ""), strict=False):
        name, equals, rest = option.partition("=")
        if name in _OPTIONS and Path(file := rest if equals else value).is_file():
            read_mapping(Path(file))
            _refuse_secrets(Path(file).read_text(encoding="utf-8"), file)


def _refuse_secrets(text: str, where: str) -> None:
    for name in re.findall(r"oc\.env:\s*([^},]*)", text):
        if "$" in name or SECRET_NAME.search(name):
            raise UserError(
                f"{where}: got ${{oc.env:{name}}}, which would be written into config.yaml; let the code that needs it "
                "read the variable by itself"
            )
