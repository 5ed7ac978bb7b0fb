"""Completions that are drawn while the policy learns from others."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

from grpovi_lightning.distributed import gather_objects, largest_over_ranks
from grpovi_lightning.models import CausalLMSource, LanguageModel
from grpovi_lightning.rollout.vllm.client import VLLMServer
from grpovi_lightning.rollout.vllm.engines import Engine
from grpovi_lightning.rollout.vllm.requests import Completion, Request

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
        self._finish()
        rows = [(*key, *completion) for key, completion in self._drawn.items()]
        return json.dumps({"settings": self._settings, "rows": list(chain.from_iterable(gather_objects(rows)))})

    def take_drawn_ahead(self, state: str | None) -> None:
        if state is None:
            return
        content = json.loads(state)
        self._begun, self._settings = None, content["settings"]
        self._drawn = {(tuple(prompt), seed): (tokens, logprobs) for prompt, seed, tokens, logprobs in content["rows"]}

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
