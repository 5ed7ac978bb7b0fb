"""Bad inputs of every kind: one line with what was got, expected and to be done, status 2, and nothing changed.

Each goes through `main`, as a person's would. No model may be loaded before the line is printed.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.own_input import run_config, write_own_input
from transformers import PreTrainedModel

from grpovi_lightning.cli import main

GL = "grpovi_lightning"
MODEL, DATA = "model.init_args", "data.init_args"
POLICY, REWARD = f"{MODEL}.policy.init_args", f"{MODEL}.reward.init_args"
GONE = object()
"""Takes a setting away."""


@dataclass(frozen=True)
class Bad:
    """One bad input, and the line that it gets."""

    name: str
    line: str
    """A regular expression for the line from its beginning, without `grpovi: error: `."""
    arguments: tuple[str, ...]
    write: Callable[[Path], None]
    """Puts what it needs into the working folder."""


def command(line: str, said: str, write: Callable[[Path], None] = lambda here: None) -> Bad:
    """A command line by itself; `write` makes the files that it names."""
    return Bad(line, said, tuple(line.split()), write)


def files(**contents: str | bytes) -> Callable[[Path], None]:
    """Writes files: `a_yaml="x"` is the file `a.yaml` with `x` in it."""

    def write(here: Path) -> None:
        for name, content in contents.items():
            file = here / name.replace("_", ".")
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def fit(name: str, settings: dict[str, Any], said: str, *arguments: str, write=lambda here: None) -> Bad:
    """A run of GRPO with some settings changed, by their dotted names."""

    def write_all(here: Path) -> None:
        config = run_config(Path("."), Path("run"))
        for key, value in settings.items():
            put(config, key, value)
        (here / "run.yaml").write_text(yaml.safe_dump(config))
        write(here)

    return Bad(name, said, ("fit", "--config", "run.yaml", *arguments), write_all)


def put(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    if value is GONE:
        del config[last]
    else:
        config[last] = value


def study(name: str, changes: dict[str, Any], said: str, *arguments: str) -> Bad:
    """A study of one arm with something changed."""

    def write(here: Path) -> None:
        content = {"name": "small", "seeds": [1], "arms": {"plain": {"configs": ["run.yaml"]}}}
        for key, value in changes.items():
            put(content, key, value)
        (here / "study.yaml").write_text(yaml.safe_dump(content))
        (here / "run.yaml").write_text(yaml.safe_dump(run_config(Path("."), Path("run"))))

    return Bad(name, said, ("compare", "study.yaml", *arguments), write)
