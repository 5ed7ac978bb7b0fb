"""A linear reward on frozen features, which can go on learning while the policy is trained."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpovi_lightning.rewards.base import Reward, RewardUpdate
from grpovi_lightning.rewards.online.estimator import PreferenceEstimator
from grpovi_lightning.rewards.online.features import FeatureModel
from grpovi_lightning.rewards.online.head import check_head, check_identity, identity, load_head, save_head
from grpovi_lightning.rewards.online.learning import OnlineLearning
from grpovi_lightning.rewards.online.mirror_descent import OnlineMirrorDescent
from grpovi_lightning.rewards.sequences import SequenceReader
from grpovi_lightning.structures import Rollout

EstimatorFactory = Callable[[int], PreferenceEstimator]
"""Number of features -> an estimator; in YAML a `class_path` with the other arguments."""


class LinearReward(Reward):
    """The score phi(x, a)' theta of a `PreferenceEstimator`, standardised by the numbers in the folder `start`.

    With `online` the estimator goes on learning, from comparisons of the policy's own completions, so the rewards
    change while the policy is trained; mean and standard deviation stay those of `start`. Without, the reward is
    frozen. `OnlineMirrorDescent` with `online` is the paper's algorithm (arXiv 2502.07193, Algorithm 1).
    """

    def __init__(
        self,
        features: FeatureModel,
        estimator: EstimatorFactory = OnlineMirrorDescent,
        start: str | None = None,
        online: OnlineLearning | None = None,
        name: str = "reward_model",
    ) -> None:
        """Compose the reward; `load` reads models.

        Args:
            features: phi.
            estimator: learns theta; called with the number of features.
            start: folder that `OnePassRewardModule` wrote, with estimator and standardisation to begin with. None:
                theta = 0, so that every reward is 0 until the first round.
            online: how it goes on learning; None: it does not.
            name: the name under which the score is logged.
        """
        super().__init__()
        self.features, self.make_estimator, self.start = features, estimator, start
        self.online, self.name = online, name
        self.learns = online is not None
        self.estimator: PreferenceEstimator | None = None
        self.mean, self.std = 0.0, 1.0
        self.reader: SequenceReader | None = None

    def weights(self) -> dict[str, float]:
        return {self.name: 1.0}

    def check(self) -> None:
        """Raise `UserError` for folders, settings of the estimator, or an oracle that cannot work."""
        self.features.check()
        estimator = self.make_estimator(1)
        if self.start is not None:
            check_head(self.start)
        if self.online is not None:
            self.online.check(estimator)

    def check_columns(self, tables: Mapping[str, Collection[str]]) -> None:
        if self.online is not None and "train" in tables:
            self.online.oracle.check_columns(tables["train"])

    def load(self, policy_tokenizer: PreTrainedTokenizerBase | None) -> None:
        if self.estimator is not None:
            return
        self.features.load()
        self.reader = SequenceReader(self.features.tokenizer, policy_tokenizer, self.features.limits)
        self.estimator = self.make_estimator(self.features.dim)
        if self.start is not None:
            self.mean, self.std = load_head(self.start, self.features.fingerprint, self.estimator)

    def readers(self) -> list[SequenceReader]:
        return [] if self.reader is None else [self.reader]

    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        assert self.estimator is not None, "load() comes before scoring"
        scores = (self.estimator.reward(self._phi(rollout)) - self.mean) / self.std
        return {self.name: scores.float().to(rollout.completion_ids.device)}

    def learn(self, rollout: Rollout, seed: int, stopping: Callable[[], bool] = lambda: False) -> RewardUpdate:
        """Run a round of online learning where one is due."""
        if self.online is None or not self.online.is_due(rollout.step):
            return RewardUpdate()
        assert self.estimator is not None, "load() comes before learning"
        return self.online.run(self.estimator, rollout, self._phi(rollout), seed, stopping)

    def progress(self) -> dict[str, float]:
        return {} if self.online is None else self.online.progress()

    @torch.no_grad()
    def _phi(self, rollout: Rollout) -> Tensor:
        assert self.reader is not None, "load() comes before features"
        return self.features(self.reader.rows(rollout))

    def save_learned(self, folder: str | Path) -> None:
        """Write a folder that another `LinearReward` can `start` from; nothing where the reward is frozen."""
        if self.online is not None:
            assert self.estimator is not None, "load() comes before saving"
            save_head(folder, self.features.fingerprint, self.estimator, self.mean, self.std)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what goes into checkpoints: the estimator, of which features, standardisation, open questions."""
        assert self.estimator is not None, "load() comes before saving"
        return {
            "identity": identity(self.features.fingerprint, self.estimator),
            "estimator": self.estimator.state_dict(),
            "moments": (self.mean, self.std),
            "online": {} if self.online is None else self.online.state_dict(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: it is of other features, another estimator, or other settings of it.
        """
        assert self.estimator is not None, "load() comes before restoring"
        check_identity(state["identity"], identity(self.features.fingerprint, self.estimator), "checkpoint")
        self.estimator.load_state_dict(state["estimator"])
        self.mean, self.std = state["moments"]
        if self.online is not None and state["online"]:
            self.online.load_state_dict(state["online"])
