"""Where vLLM runs: in the training process, or as a server."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from grpovi_lightning.distributed import from_first_rank
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import CausalLMSource, LanguageModel
from grpovi_lightning.models.handover import HandedOver, digest, lora_rank
from grpovi_lightning.rollout.vllm.library import check_model, check_options
from grpovi_lightning.rollout.vllm.loaded import LoadedModel
from grpovi_lightning.rollout.vllm.requests import Completion, Request, Versions


class Engine(ABC):
    """A vLLM that completes prompts by the policy as it is now."""

    draws_ahead = False
    """Whether it can begin to draw the completions of the next step; see `OneStepAhead`."""

    @abstractmethod
    def check(self, source: CausalLMSource) -> None:
        """Raise `UserError` where it can be told before anything is loaded that it cannot run the policy."""

    def check_processes(self, number: int) -> None:  # noqa: B027  a server takes any number
        """Raise `UserError` where it cannot serve that many training processes."""

    @abstractmethod
    def complete(self, policy: LanguageModel, request: Request) -> list[Completion]:
        """Draw B completions; the policy is handed over before where it has changed."""

    def begin(self, policy: LanguageModel, request: Request) -> None:
        """Begin to draw B completions of the policy as it is now, which `complete` is asked for later."""
        raise NotImplementedError(f"{type(self).__name__} does not draw ahead")

    def drawn_ahead(self) -> str | None:
        """Return what was drawn ahead, for a checkpoint; None where nothing was. All processes call it together."""
        return None

    def take_drawn_ahead(self, state: str | None) -> None:  # noqa: B027  most have no use for it
        """Go on with what `drawn_ahead` returned."""


def handed_over(policy: LanguageModel, rank: int) -> tuple[Versions, HandedOver | None]:
    """Return what an engine gets that takes adapters up to a rank; others are worked into the weights.

    Sharded weights are gathered, which all processes do together.

    Returns:
        the digests of what is handed over, and that; None where the first process hands it over for all.
    """
    model = policy.weights.plain_model()
    handed = None if model is None else HandedOver.of(model, adapters=0 < lora_rank(model) <= rank)
    versions = None if handed is None else versions_of(handed)
    if policy.is_sharded:
        versions = from_first_rank(lambda: versions)
    assert versions is not None  # the first process has them
    return versions, handed


def versions_of(policy: HandedOver) -> Versions:
    """Return the digests of what is handed over."""
    return Versions(digest(policy.tensors), policy.adapter.digest if policy.adapter else None)


class ColocatedVLLM(Engine):
    """vLLM in the training process, on its device. It is loaded at the first rollout.

    On a GPU it sleeps between rollouts: its weights lie in the memory of the CPU then, and keys and values nowhere.
    """

    def __init__(
        self,
        kv_cache_gb: float = 4.0,
        lora_rank: int | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Say how much memory it may take.

        Args:
            kv_cache_gb: for keys and values, 10^9 bytes.
            lora_rank: the largest rank of an adapter that is handed over by itself; None: that of the policy. Others
                are merged into the weights: with 0 more is handed over, and a token takes less time.
            options: further arguments of `vllm.LLM`, of those in `library.OPTIONS`.
        """
        if not 0.0 < kv_cache_gb < float("inf"):
            raise UserError(f"kv_cache_gb: got {kv_cache_gb}, expected a number above 0")
        if lora_rank is not None and lora_rank < 0:
            raise UserError(f"lora_rank: got {lora_rank}, expected at least 0 (0: adapters are merged)")
        check_options(options)
        self.kv_cache_gb, self.lora_rank, self.options = kv_cache_gb, lora_rank, dict(options)
        self._loaded: tuple[LanguageModel, LoadedModel] | None = None

    def check(self, source: CausalLMSource) -> None:
        check_model(source)

    def check_processes(self, number: int) -> None:
        if number > 1:
            raise UserError(
                f"ColocatedVLLM: got {number} training processes, expected one; let them share a VLLMServer"
            )

    def complete(self, policy: LanguageModel, request: Request) -> list[Completion]:
        loaded = self._model(policy)
        versions, handed = handed_over(policy, loaded.lora_rank)
        assert handed is not None  # there is one process
        loaded.take(versions, handed)
        return loaded.complete(request)

    def _model(self, policy: LanguageModel) -> LoadedModel:
        if self._loaded is None or self._loaded[0] is not policy:
            with tempfile.TemporaryDirectory() as folder:
                policy.model.config.save_pretrained(folder)
                dtype = str(policy.model.dtype).removeprefix("torch.")
                rank = lora_rank(policy.model) if self.lora_rank is None else self.lora_rank
                self._loaded = policy, LoadedModel(folder, dtype, self.kv_cache_gb, rank, self.options, sleeps=True)
        return self._loaded[1]
