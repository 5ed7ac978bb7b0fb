"""A linear reward model on frozen features, learned in one pass over a preference table."""

from collections import defaultdict
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.data.modules import TextPairs
from grpovi_lightning.errors import UserError
from grpovi_lightning.modules.checkpoints import FrozenLeftOut
from grpovi_lightning.modules.evaluation import by_set, check_set_names, held_out_names
from grpovi_lightning.modules.held_out_pairs import HeldOutPairs, pair_accuracy
from grpovi_lightning.modules.logging import log_held_out, log_scalars
from grpovi_lightning.modules.settings import refuse_sharding
from grpovi_lightning.modules.tables import check_tables
from grpovi_lightning.rewards.online import OnlineMirrorDescent, PreferenceEstimator
from grpovi_lightning.rewards.online.features import FeatureModel
from grpovi_lightning.rewards.online.head import check_identity, identity, save_head
from grpovi_lightning.rewards.online.reward import EstimatorFactory
from grpovi_lightning.rewards.sequences import pair_rows
from grpovi_lightning.trainer_state import data_of


class OnePassRewardModule(FrozenLeftOut):
    """A Bradley-Terry reward model on frozen features, by any `PreferenceEstimator` (arXiv 2502.07193).

    Each training step is one round: the estimator learns from a batch of pairs. A one-pass estimator, the default, does
    not see them again. The folder written at the end is the `start` of a `LinearReward`. Mean and standard deviation of
    the final estimate's scores on the held-out pairs, of all sets, standardise its rewards. Without such pairs the
    rewards are not standardised, and the run says so.
    """

    estimator: PreferenceEstimator
    """Made by `configure_model`, when the number of features is known."""

    def __init__(self, features: FeatureModel, estimator: EstimatorFactory = OnlineMirrorDescent) -> None:
        """Compose the model; `configure_model` loads it.

        Args:
            features: phi.
            estimator: learns theta; called with the number of features.
        """
        super().__init__()
        self.features, self.make_estimator = features, estimator
        self.automatic_optimization = False
        # Lightning counts steps, for `max_steps` and checkpoints, by those of an optimizer: this one moves nothing.
        self.counter = nn.Parameter(torch.zeros(()))
        self.held_out: defaultdict[int, HeldOutPairs] = defaultdict(HeldOutPairs)
        """Place of a held-out set -> its pairs so far."""
        self.moments: FeatureMoments | None = None

    def check_inputs(self) -> None:
        """Raise `UserError` for a missing checkpoint and settings that cannot work, before anything is loaded."""
        self.features.check()
        self.make_estimator(1)

    def check_settings(self, trainer: L.Trainer, data: L.LightningDataModule | None) -> None:
        """Compare the settings with those of the trainer, before anything is loaded.

        Raises:
            UserError: its precision would round the features, it has several processes, or a setting has no effect.
        """
        refuse_sharding(self, trainer)
        check_set_names(data)
        if trainer.precision not in ("32-true", "bf16-mixed", "64-true"):
            raise UserError(
                f"OnePassRewardModule: got trainer.precision {trainer.precision}, which rounds the feature model; "
                "leave it at 32-true and set the feature model's dtype"
            )
        if trainer.world_size > 1:
            raise UserError(
                f"OnePassRewardModule: got {trainer.world_size} processes, expected 1; its rounds are one after "
                "the other: set trainer.devices 1"
            )
        for name, off in (("accumulate_grad_batches", 1), ("gradient_clip_val", None)):
            if (value := getattr(trainer, name)) != off:
                raise UserError(
                    f"trainer.{name}: got {value}, which has no effect on rounds of an estimator; leave it out, and "
                    "set data.batch_size to the pairs of a round"
                )

    def configure_model(self) -> None:
        """Load the feature model; a second call does nothing.

        Raises:
            UserError: see `check_settings`; or the feature model cannot read a row of a table.
        """
        self.check_settings(self.trainer, None)
        if not hasattr(self, "estimator"):
            self.features.load()
            self.estimator = self.make_estimator(self.features.dim)
        check_tables(data_of(self), self.features.limits, lambda batch: pair_rows(self.features.tokenizer, batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.counter], lr=0.0)

    def training_step(self, batch: TextPairs, batch_idx: int) -> None:
        """Run one round. Loss and accuracy are those of the estimate before it learned from the batch."""
        chosen, rejected = self._features(batch)
        scores = self.estimator.reward(chosen), self.estimator.reward(rejected)
        self.estimator.update(chosen - rejected, torch.ones(len(chosen)))
        self.optimizers().step()  # type: ignore[union-attr]
        metrics = {
            keys.LOSS: float(-logsigmoid(scores[0] - scores[1]).mean()),
            keys.PAIR_ACCURACY: float(pair_accuracy(*scores).mean()),
            keys.ONLINE_STATE_BYTES: float(self.estimator.state_bytes),
        }
        log_scalars(self, metrics, self.trainer.global_step - 1, shown=[keys.LOSS, keys.PAIR_ACCURACY])

    def on_validation_epoch_start(self) -> None:
        self.moments = FeatureMoments(self.features.dim)

    def validation_step(self, batch: TextPairs, batch_idx: int, dataloader_idx: int = 0) -> None:
        sides = self._features(batch)
        chosen, rejected = (self.estimator.reward(side).to(self.device) for side in sides)
        self.held_out[dataloader_idx].to(self.device).update(chosen, rejected)
        if self.moments is not None:
            self.moments.update(torch.cat(sides))

    def on_validation_epoch_end(self) -> None:
        names = held_out_names(self.trainer)
        metrics = by_set(names, [self.held_out[which].compute() for which in range(len(names))])
        log_held_out(self, metrics, self.trainer.global_step, shown=[keys.PAIR_ACCURACY])
        self.held_out.clear()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _features(self, batch: TextPairs) -> tuple[Tensor, Tensor]:
        """Return the features of the chosen and of the rejected completions, [b, D] each."""
        chosen, rejected = self.features(pair_rows(self.features.tokenizer, batch)).chunk(2)
        return chosen, rejected

    def get_extra_state(self) -> dict[str, Any]:
        """Return the estimator's state, the identity of its features, and their moments at the last evaluation."""
        moments = None if self.moments is None else vars(self.moments)
        return {
            "identity": identity(self.features.fingerprint, self.estimator),
            "estimator": self.estimator.state_dict(),
            "moments": moments,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        check_identity(state["identity"], identity(self.features.fingerprint, self.estimator), "checkpoint")
        self.estimator.load_state_dict(state["estimator"])
        if state["moments"] is not None:
            self.moments = FeatureMoments(self.features.dim)
            vars(self.moments).update(state["moments"])

    def save_pretrained(self, folder: str) -> None:
        """Write the folder that a `LinearReward` starts from."""
        mean, std = (0.0, 1.0) if self.moments is None else self.moments.score_mean_and_std(self.estimator.theta)
        if std <= 0.0 or self.moments is None:
            self.print("the rewards are not standardised: no held-out pairs, or their scores are all equal")
            mean, std = 0.0, 1.0
        save_head(folder, self.features.fingerprint, self.estimator, mean, std)


class FeatureMoments:
    """Mean and covariance of features; they give mean and standard deviation of any linear score.

    >>> moments = FeatureMoments(dim=2)
    >>> moments.update(torch.tensor([[1.0, 0.0], [2.0, 5.0]]))
    >>> moments.update(torch.tensor([[6.0, 7.0]]))
    >>> theta = torch.tensor([1.0, 0.0], dtype=torch.float64)  # the scores are 1, 2 and 6
    >>> [round(value, 4) for value in moments.score_mean_and_std(theta)]
    [3.0, 2.6458]
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features [b, D], by the update of mean and scatter matrix that loses no digits (Chan et al., 1979)."""
        rows = features.double().cpu()
        mean, total = rows.mean(dim=0), self.count + len(rows)
        centred, shift = rows - mean, mean - self.mean
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count = total

    def score_mean_and_std(self, theta: Tensor) -> tuple[float, float]:
        """Return mean and standard deviation (Bessel) of phi' theta; the latter is 0 for a single score."""
        variance = float(theta @ self.scatter @ theta) / max(self.count - 1, 1)
        return float(self.mean @ theta), max(variance, 0.0) ** 0.5
