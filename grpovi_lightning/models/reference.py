"""The reference policy of a policy with adapters: the same weights with the adapters switched off."""

from typing import Any

from grpovi_lightning.models.adapters import adapters_off
from grpovi_lightning.models.language_model import LanguageModel


class WithoutAdapter:
    """The model under a policy's adapters. It costs no second copy of the weights."""

    def __init__(self, policy: LanguageModel) -> None:
        self._policy = policy

    @property
    def runs_prompts_once(self) -> bool:
        """Whether `completion_statistics` runs each prompt once for its whole group."""
        return self._policy.runs_prompts_once

    def completion_statistics(self, *args: Any) -> Any:
        """Return `LanguageModel.completion_statistics` of the policy without its adapters."""
        with adapters_off(self._policy.model):
            return self._policy.completion_statistics(*args)
