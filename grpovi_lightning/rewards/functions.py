"""Rewards computed by a Python function."""

import math
from collections.abc import Callable, Collection, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from grpovi_lightning.conversations import Conversation, as_messages
from grpovi_lightning.errors import TrainingError
from grpovi_lightning.rewards.base import Reward
from grpovi_lightning.rewards.user_code import accepted_arguments, call_user_code, import_function
from grpovi_lightning.structures import Rollout


class RewardFunction(Reward):
    """A function with TRL's signature: `f(prompts, completions, completion_ids, **columns) -> list[float | None]`.

    Every argument has one entry per completion: prompts and columns are repeated over the group. A function without
    `**columns` gets those that it names. The function returns None or NaN for a completion that it cannot score, and
    for all completions of a prompt of another task (see `Reward.total`). Where prompts are conversations, a prompt is a
    list of messages, and a completion a list of one.
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

    def check_columns(self, tables: Mapping[str, Collection[str]]) -> None:
        for table, columns in tables.items():
            accepted_arguments(self.name, self.function, columns, f"the {table} table")

    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        """Call the function once for the whole rollout; NaN where it returned None or NaN.

        Raises:
            TrainingError: it raised an error, or it returned another number of values, or a value that is infinite or
                no number.
            UserError: it needs an argument that is no column of the prompts, or a column has the name of one that every
                function gets.
        """
        prompts = rollout.prompts

        def repeated(values: Any) -> list[Any]:
            return [value for value in values for _ in range(rollout.group_size)]

        places, names = accepted_arguments(self.name, self.function, prompts.columns, "the prompts")
        ids = [row[kept].tolist() for row, kept in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]
        given = {"prompts": repeated(prompts.contents), "completions": list(rollout.texts), "completion_ids": ids}
        if any(isinstance(prompt, Conversation) for prompt in prompts.contents):
            given["prompts"] = [[dict(message) for message in prompt.messages] for prompt in given["prompts"]]
            given["completions"] = [as_messages(text) for text in rollout.texts]
        given |= {name: repeated(column) for name, column in prompts.columns.items()}
        values = call_user_code(
            f"reward function {self.name}",
            rollout,
            self.function,
            *(given[name] for name in places),
            **{name: given[name] for name in names},
        )
        return {self.name: self._checked(values, len(ids)).to(rollout.completion_ids.device)}

    def _checked(self, values: Any, expected: int) -> Tensor:
        try:
            if isinstance(values, str | bytes | Mapping | Set):  # their elements are not one number a completion
                raise TypeError
            values = list(values)
        except TypeError:
            raise TrainingError(
                f"reward function {self.name} returned {type(values).__name__}, expected a list"
            ) from None
        if len(values) != expected:
            raise TrainingError(
                f"reward function {self.name} returned {len(values)} values, expected {expected}, one per completion"
            )
        scores = torch.tensor([self._number(value, i) for i, value in enumerate(values)], dtype=torch.float32)
        for i in scores.isinf().nonzero().flatten().tolist():
            raise TrainingError(
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
        raise TrainingError(
            f"reward function {self.name} returned {value!r} at position {position}, expected a number, "
            "or None where a completion cannot be scored"
        )
