"""The reference policy of a policy with adapters, in the policy's own model."""

from typing import Any

from grpovi_lightning.models.adapters import initial_adapters
from grpovi_lightning.models.language_model import LanguageModel
from grpovi_lightning.models.sharding import WholeWeights


class SharedReference:
    """The initial policy: the weights under a policy's adapters, with the adapters as they were before the training.

    It costs no second copy of the weights. Adapters that change nothing at first are switched off; of others there is a
    frozen copy.
    """

    def __init__(self, policy: LanguageModel) -> None:
        self._policy = policy

    @property
    def weights(self) -> WholeWeights:
        """Where the weights are: the policy's."""
        return self._policy.weights

    @property
    def runs_prompts_once(self) -> bool:
        """Whether `completion_statistics` runs each prompt once for its whole group."""
        return self._policy.runs_prompts_once

    def completion_statistics(self, *args: Any) -> Any:
        """Return `LanguageModel.completion_statistics` of the initial policy."""
        with initial_adapters(self._policy.model):
            return self._policy.completion_statistics(*args)
