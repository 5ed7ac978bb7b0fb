"""Reads workloads: a checkpoint with its tokenizer, prompts, a reward function and the sizes, in one folder.

Standard library only: trl_step.py reads them too, and its Python need not have this project.
"""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS = ("model", "prompts.jsonl", "reward.py", "workload.json")
REWARD_NAME = "ends_in_seven"
TIMED = {"loss": "grpo", "num_iterations": 1}
EXPECTED = {
    int: ((int,), "a whole number of at least 1"),
    float: ((int, float), "a number"),
    str: ((str,), "a name"),
}


class InputError(ValueError):
    """Something the user can mend; the message is one line. The package's `UserError` is out of reach here."""


@dataclass(frozen=True)
class Workload:
    """What a benchmark trains on.

    Attributes:
        folder: holds `PARTS`.
        reward: called as TRL calls reward functions.
        prompts_per_step: P.
        group_size: G.
        completion: the longest completion, tokens.
        loss: TRL's name of the loss.
        num_iterations: updates on each rollout. TRL calls every update a step, this project every rollout, so that
            only 1 can be compared.
    """

    folder: Path
    reward: Callable[..., list[float | None]]
    prompts_per_step: int
    group_size: int
    completion: int
    beta: float
    learning_rate: float
    temperature: float
    loss: str
    num_iterations: int


def read_workload(folder: Path) -> Workload:
    """Reads a folder as `write_workload.py` writes it.

    Raises:
        InputError: a part is missing, or `workload.json` lacks a setting or holds one that is not timed here.
    """
    missing = [part for part in PARTS if not (folder / part).exists()]
    if missing:
        raise InputError(f"{folder}: got no {missing[0]}, expected a workload; write one with write_workload.py")
    return Workload(folder=folder, reward=_reward(folder / "reward.py"), **_settings(folder / "workload.json"))


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: no JSON, {error}") from None
    settings: dict[str, Any] = {}
    for name, kind in Workload.__annotations__.items():
        if name in ("folder", "reward"):
            continue
        value: Any = found.get(name) if isinstance(found, dict) else None
        types, expected = EXPECTED[kind]
        if type(value) not in types or (kind is int and value < 1):
            raise InputError(f"{path}: {name}: got {value!r}, expected {expected}")
        if value != TIMED.get(name, value):
            raise InputError(f"{path}: {name}: got {value}, expected {TIMED[name]}, which is what is timed here")
        settings[name] = value
    return settings


def _reward(path: Path) -> Callable[..., list[float | None]]:
    spec = importlib.util.spec_from_file_location("workload_reward", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, REWARD_NAME):
        raise InputError(f"{path}: got no function {REWARD_NAME}; write the workload again with write_workload.py")
    return getattr(module, REWARD_NAME)
