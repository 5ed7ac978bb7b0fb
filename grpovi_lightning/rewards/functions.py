"""Rewards computed by a Python function."""

import importlib
import math
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.base import Reward
from grpovi_lightning.structures import Rollout


class RewardFunction(Reward):
    """A function with TRL's signature: `f(prompts, completions, completion_ids, **columns) -> list[float | None]`.

    Every argument has one entry per completion: prompts and columns are repeated over the group. The function returns
    None or NaN for a completion that it cannot score, and for all completions of a prompt of another task (see
    `Reward.total`).
    """

    def __init__(self, function: str | Callable[..., list[float | None]], name: str | None = None) -> None:
        """Import the function.

        Args:
            function: the function or its import path, such as `my_rewards.accuracy`; the folder in which
                the command runs is on the import path.
            name: the name under which it is logged; default: the function's.

        Raises:
            UserError: the import path leads to no function.
        """
        super().__init__()
        self.function = import_function(function) if isinstance(function, str) else function
        self.name = name or getattr(self.function, "__name__", type(self.function).__name__)

    def weights(self) -> dict[str, float]:
        return {self.name: 1.0}

    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        """Call the function once for the whole rollout; NaN where it returned None or NaN.

        Raises:
            UserError: it returned another number of values, or a value that is infinite or no number; or a column of
                the prompts has the name of an argument.
        """
        prompts = rollout.prompts
        for name in ("prompts", "completions", "completion_ids"):
            if name in prompts.columns:
                raise UserError(
                    f"column {name!r} of the prompts has the name of an argument of every reward function; "
                    "rename it, or list the columns to hand over in the data's `columns`"
                )

        def repeated(values: Any) -> list[Any]:
            return [value for value in values for _ in range(rollout.group_size)]

        ids = [row[kept].tolist() for row, kept in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]
        values = self.function(
            prompts=repeated(prompts.texts),
            completions=list(rollout.texts),
            completion_ids=ids,
            **{name: repeated(column) for name, column in prompts.columns.items()},
        )
        return {self.name: self._checked(values, len(ids)).to(rollout.completion_ids.device)}

    def _checked(self, values: Any, expected: int) -> Tensor:
        try:
            if isinstance(values, str | bytes | Mapping | Set):  # their elements are not one number a completion
                raise TypeError
            values = list(values)
        except TypeError:
            raise UserError(f"reward function {self.name} returned {type(values).__name__}, expected a list") from None
        if len(values) != expected:
            raise UserError(
                f"reward function {self.name} returned {len(values)} values, expected {expected}, one per completion"
            )
        scores = torch.tensor([self._number(value, i) for i, value in enumerate(values)], dtype=torch.float32)
        for i in scores.isinf().nonzero().flatten().tolist():
            raise UserError(
                f"reward function {self.name} returned {values[i]} at position {i}, expected a finite float32 number, "
                "or None where a completion cannot be scored"
            )
        return scores

    def _number(self, value: Any, position: int) -> float:
        if value is None:
            return math.nan
        if not isinstance(value, str):
            try:
                return float(value)
            except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
                pass
        raise UserError(
            f"reward function {self.name} returned {value!r} at position {position}, expected a number, "
            "or None where a completion cannot be scored"
        )


def import_function(path: str) -> Callable[..., Any]:
    """Return the callable at `package.module.name`.

    >>> import_function("math.sqrt")(9.0)
    3.0

    Raises:
        UserError: the module or the name does not exist, or is no callable.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError(f"reward function: got {path!r}, expected an import path such as my_rewards.accuracy")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"reward function {path}: no module named {error.name!r}; run in the folder that holds it or install it"
        ) from error
    if not hasattr(module, name):
        raise UserError(f"reward function {path}: module {module_name} has no {name!r}")
    found = getattr(module, name)
    if not callable(found):
        raise UserError(f"reward function {path}: got a {type(found).__name__}, expected a function")
    return found
