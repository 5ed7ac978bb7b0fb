"""Completions that are drawn while the policy learns from others."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

from grpovi_lightning.distributed import gather_objects, largest_over_ranks
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.models import CausalLMSource, LanguageModel
from grpovi_lightning.rollout.vllm.client import VLLMServer
from grpovi_lightning.rollout.vllm.engines import Engine
from grpovi_lightning.rollout.vllm.requests import Completion, Request

_log = logging.getLogger(__name__)

_Key = tuple[tuple[int, ...], int]


class OneStepAhead(Engine):
    """A server that draws the completions of each step while the policy is trained on those of the step before.

    They come from weights that are one step old; `TruncatedImportanceSampling` corrects for that. A run's first step,
    evaluations and whatever else was not begun are drawn when they are asked for.

    Each completion that was drawn ahead stands under what it belongs to, its prompt and its seed. So a run that goes
    on from a checkpoint, where they are, has the bits of one that was not stopped, with any number of processes.
    """

    draws_ahead = True

    def __init__(self, server: VLLMServer | None = None) -> None:
        """Say where they are drawn.

        Args:
            server: default one at the default address. Each training process keeps a copy of the trained weights, for
                a server that is started anew.
        """
        self.server = server or VLLMServer()
        self._begun: tuple[Request, Callable[[], list[Completion]]] | None = None
        self._settings: dict[str, Any] = {}
        self._drawn: dict[_Key, Completion] = {}

    def check(self, source: CausalLMSource) -> None:
        self.server.check(source)

    def begin(self, policy: LanguageModel, request: Request) -> None:
        self._begun, self._drawn = (request, self.server.completing(policy, request)), {}

    def complete(self, policy: LanguageModel, request: Request) -> list[Completion]:
        self._finish()
        found = [self._drawn.get(key) for key in _keys(request)]
        others = int(None in found or self._settings != _settings(request))
        if largest_over_ranks(others) if policy.is_sharded else others:  # sharded weights are handed over by all
            return self.server.complete(policy, request)
        return found  # type: ignore[return-value]

    def drawn_ahead(self) -> str | None:
        try:
            self._finish()
        except (TrainingError, UserError) as error:  # what was learned is saved nevertheless
            self._begun = None
            _log.warning("%s; the next step's completions are drawn when it begins, by the policy as it is then", error)
        rows = [(*key, *completion) for key, completion in self._drawn.items()]
        return json.dumps({"settings": self._settings, "rows": list(chain.from_iterable(gather_objects(rows)))})

    def take_drawn_ahead(self, state: str | None) -> None:
        self._begun, self._settings, self._drawn = None, {}, {}
        if state is None:
            return
        try:
            content = json.loads(state)
            self._drawn = {(tuple(prompt), seed): (tokens, logps) for prompt, seed, tokens, logps in content["rows"]}
            self._settings = content["settings"]
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise UserError(f"checkpoint: what was drawn ahead cannot be read ({error}); give another one") from error

    def __getstate__(self) -> dict[str, Any]:
        self._finish()  # what waits cannot be copied
        return dict(self.__dict__)

    def _finish(self) -> None:
        """Wait for what was begun."""
        if self._begun is not None:
            request, wait = self._begun
            self._drawn = dict(zip(_keys(request), wait(), strict=True))
            self._begun, self._settings = None, _settings(request)


def _keys(request: Request) -> Iterator[_Key]:
    members = len(request.seeds) // len(request.prompts)
    return ((tuple(request.prompts[row // members]), seed) for row, seed in enumerate(request.seeds))


def _settings(request: Request) -> dict[str, Any]:
    """Return all that completions depend on but prompts, seeds and weights."""
    return asdict(replace(request, prompts=[], seeds=[]))
