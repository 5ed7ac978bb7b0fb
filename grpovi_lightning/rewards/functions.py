"""Rewards computed by a Python function."""

import math
from collections.abc import Callable, Collection, Mapping, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grpovi_lightning.conversations import Conversation, as_messages
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards.arguments import STATE, accepted_arguments, check_kwargs, parameters_of
from grpovi_lightning.rewards.base import Reward
from grpovi_lightning.rewards.imports import imported
from grpovi_lightning.rewards.retrying import Retry
from grpovi_lightning.rewards.user_code import Patience, is_async, made_function, start_user_code
from grpovi_lightning.structures import OnCompletion, Rollout

_Key = tuple[int, int, int, tuple[int, ...]]
"""Step, number of the prompt, place in its group, and tokens."""


def arguments_of(rollout: Rollout) -> dict[str, Any]:
    """Return all that a rollout has for a reward function, by the argument's name; lists have B entries.

    Of answers that no policy sampled `completion_ids` is None, so that a function which reads them fails.
    """

    def repeated(values: Any) -> list[Any]:
        return [value for value in values for _ in range(rollout.group_size)]

    prompts = rollout.prompts
    rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    ids = [row[kept].tolist() for row, kept in rows] if rollout.has_tokens else None
    given: dict[str, Any] = {"prompts": repeated(prompts.contents), "completions": list(rollout.texts)}
    given["completion_ids"] = ids
    if any(isinstance(prompt, Conversation) for prompt in prompts.contents):
        given["prompts"] = [[dict(message) for message in prompt.messages] for prompt in given["prompts"]]
        given["completions"] = [as_messages(text) for text in rollout.texts]
    given |= {name: repeated(column) for name, column in prompts.columns.items()}
    return given | {"trainer_state": rollout.progress}


class RewardFunction(Reward):
    """A function with TRL's signature: `f(prompts, completions, completion_ids, **columns) -> list[float | None]`.

    These arguments have one entry per completion: prompts and columns are repeated over the group. A function without
    `**columns` gets those that it names. One that names `trainer_state` gets a `RunProgress`. The function returns
    None or NaN for a completion that it cannot score, and for all completions of a prompt of another task (see
    `Reward.total`). All `async` functions of a `CompositeReward` run at the same time, in a thread of their own, and
    beside them those with `max_concurrency`. Where prompts are conversations, a prompt is a list of messages, and a
    completion a list of one.
    """

    def __init__(
        self,
        function: str | Callable[..., Any] | None = None,
        name: str | None = None,
        kwargs: dict[str, Any] | None = None,
        factory: str | None = None,
        time_limit: float | None = None,
        retry: Retry | None = None,
        max_concurrency: int | None = None,
    ) -> None:
        """Import the function, or have it made.

        Args:
            function: the function or its import path, such as `my_rewards.accuracy`; the folder in which
                the command runs is on the import path.
            name: the name under which it is logged; default: the function's.
            kwargs: further keyword arguments of the function, or those of the factory.
            factory: instead of `function`, the import path of a function that returns the reward function, such as
                `trl.rewards.get_soft_overlong_punishment`.
            time_limit: seconds that a call may take, before the run stops; None: as long as it likes. Such a function
                runs in a thread of its own, unless it is `async`.
            retry: after which errors a call is made again, how often, and with which waits; None: the first error
                stops the run.
            max_concurrency: calls the function for each completion by itself, its lists having one entry, with this
                many calls at a time: an `async` function in the background's thread, another in threads of its own. In
                training, a completion that has ended is scored while others are still drawn, unless the function names
                `trainer_state`. None: one call for all completions.

        Raises:
            UserError: the import path leads to no function, not one of `function` and `factory` is given, `kwargs` has
                what is not taken, or a number is out of its range.
        """
        super().__init__()
        if (function is None) == (factory is None):
            raise UserError(
                f"reward function: got function {function} and factory {factory}, expected one of the two; name one, "
                "such as `function: my_rewards.accuracy`"
            )
        self.patience = Patience(time_limit, retry, max_concurrency)
        self.kwargs: dict[str, Any] = {}
        self._early: dict[_Key, Callable[[], list[Any]]] = {}
        if factory is not None:
            self.function = made_function(factory, kwargs or {})
        else:
            assert function is not None
            self.function = imported(function, "reward function") if isinstance(function, str) else function
            self.kwargs = kwargs or {}
        self.name = name or getattr(self.function, "__name__", type(self.function).__name__)
        self.waits = is_async(self.function) or max_concurrency is not None
        check_kwargs(f"reward function {self.name}", self.function, self.kwargs)

    def weights(self) -> dict[str, float]:
        return {self.name: 1.0}

    def check_columns(self, tables: Mapping[str, Collection[str]]) -> None:
        for table, columns in tables.items():
            accepted_arguments(self.name, self.function, columns, f"the {table} table", self.kwargs)

    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        """Return what the function gave for each completion; NaN where it returned None or NaN.

        Raises:
            TrainingError: it raised an error, or it returned another number of values, or a value that is infinite or
                no number.
            UserError: it needs an argument that is no column of the prompts, or a column has the name of one that every
                function gets.
        """
        return self.begin(rollout)()

    def begin(self, rollout: Rollout) -> Callable[[], dict[str, Tensor]]:
        calls = self._calls(rollout)
        early = [self._early.get(key) for key in _keys(rollout)] if self._early else [None] * len(calls)
        late = self._started(rollout, [call for call, begun in zip(calls, early, strict=True) if begun is None])
        self._early.clear()

        def answers() -> list[Any]:
            first = [begun and begun() for begun in early]
            rest = iter(late())
            return [next(rest) if answer is None else answer[0] for answer in first]

        return lambda: {self.name: self._scores(answers(), len(rollout.texts)).to(rollout.completion_ids.device)}

    def on_completion(self) -> OnCompletion | None:
        # Calls of their own for each completion, whose arguments are all known by then.
        named = [parameter.name for parameter in parameters_of(self.function) or []]
        return self._ask if self.patience.max_concurrency is not None and STATE not in named else None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_early": {}}  # a copy has asked nothing

    def _ask(self, rollout: Rollout, member: int) -> None:
        (key,) = _keys(rollout, member)
        self._early[key] = self._started(rollout, self._calls(rollout))

    def _started(self, rollout: Rollout, calls: list[Callable[[], Any]]) -> Callable[[], list[Any]]:
        what = f"reward function {self.name}"
        return start_user_code(what, rollout, calls, self.patience, len(self._early)) if calls else list

    def _calls(self, rollout: Rollout) -> list[Callable[[], Any]]:
        columns = rollout.prompts.columns
        places, names = accepted_arguments(self.name, self.function, columns, "the prompts", self.kwargs)
        given = arguments_of(rollout)
        arguments = [given] if self.patience.max_concurrency is None else _of_each(given, len(rollout.texts))
        return [
            partial(self.function, *(each[p] for p in places), **{name: each[name] for name in names}, **self.kwargs)
            for each in arguments
        ]

    def _scores(self, answers: list[Any], count: int) -> Tensor:
        """Return [B] scores out of the answers: one for all completions, or one for each."""
        per_answer = count // len(answers)
        return torch.cat([self._checked(each, per_answer, i * per_answer) for i, each in enumerate(answers)])

    def _checked(self, values: Any, expected: int, first: int) -> Tensor:
        """Return the scores of an answer about so many completions, from number `first` on."""
        try:
            if isinstance(values, str | bytes | Mapping | Set):  # their elements are not one number a completion
                raise TypeError
            values = list(values)
        except TypeError:
            raise TrainingError(
                f"reward function {self.name} returned {type(values).__name__}, expected a list"
                + "; if it made the function that scores, name it as `factory`" * callable(values)
            ) from None
        if len(values) != expected:
            raise TrainingError(
                f"reward function {self.name} returned {len(values)} values, expected {expected}, one per completion"
            )
        scores = torch.tensor([self._number(value, first + i) for i, value in enumerate(values)], dtype=torch.float32)
        for i in scores.isinf().nonzero().flatten().tolist():
            raise TrainingError(
                f"reward function {self.name} returned {values[i]} at position {first + i}, expected a finite float32 "
                "number, or None where a completion cannot be scored"
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


def _of_each(given: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the arguments about each completion: lists of one entry, and what is no list as it is."""
    return [
        {name: value[i : i + 1] if isinstance(value, list) else value for name, value in given.items()}
        for i in range(count)
    ]


def _keys(rollout: Rollout, first: int = 0) -> list[_Key]:
    """Return what tells the completions of a rollout from others, of which those of a prompt begin at a place."""
    ids, mask, size = rollout.completion_ids.cpu(), rollout.completion_mask.cpu(), rollout.group_size
    return [
        (rollout.step, number, first + member, tuple(ids[p * size + member][mask[p * size + member]].tolist()))
        for p, number in enumerate(rollout.prompts.indices.tolist())
        for member in range(size)
    ]
