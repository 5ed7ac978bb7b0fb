"""How the policy is evaluated on held-out prompts."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any, Protocol

import lightning as L
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.modules.held_out_metrics import HeldOutMetrics
from grpovi_lightning.modules.kept_batch import kept_if_scoring_fails
from grpovi_lightning.randomness import HELD_OUT_STEP
from grpovi_lightning.rewards import RewardFunction
from grpovi_lightning.rollout import Decoder, RolloutEngine, SamplingConfig, most_probable
from grpovi_lightning.selection import ScoredRollout
from grpovi_lightning.structures import PromptBatch, Rollout


@dataclass(frozen=True)
class HeldOutEvaluation:
    """What an evaluation on held-out prompts does.

    Attributes:
        samples: completions sampled for each prompt. `validation_batch_size` times as many are in memory at once.
        temperature: that they are sampled at; None: that of the training. Entropy and KL are at the same.
        greedy: whether the most probable completion of each prompt is scored as well, under `eval/greedy/`.
        kl: whether the KL divergence to the initial policy is measured where no update needs that policy, as with
            `beta: 0`. The initial policy is then kept in memory, a second copy of the weights unless adapters are
            trained. Where an update needs it, KL is measured in any case.
        pass_at: each k for which pass@k is estimated, by each component of the reward and each of the metrics.
        pass_threshold: completions with at least this score pass.
        metrics: name -> a function with the signature of a reward function, its import path, or a `RewardFunction`;
            its mean is logged as `eval/<name>`, and nothing is trained on it.
    """

    samples: int = 1
    temperature: float | None = None
    greedy: bool = False
    kl: bool = False
    pass_at: list[int] = field(default_factory=list)
    pass_threshold: float = 1.0
    metrics: dict[str, str | Callable[..., Any] | RewardFunction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least_one("evaluation.", samples=self.samples)
        for k in self.pass_at:
            if not 1 <= k <= self.samples or self.pass_at.count(k) > 1:
                raise UserError(
                    f"evaluation.pass_at: got {self.pass_at} with samples {self.samples}, expected different numbers "
                    "from 1 to samples; raise samples or leave some out"
                )
        if isnan(self.pass_threshold):
            raise UserError("evaluation.pass_threshold: got nan, expected a number")
        if not self.pass_at and self.pass_threshold != 1.0:
            raise UserError(
                f"evaluation.pass_threshold cannot take effect: got {self.pass_threshold} without pass_at; set both"
            )
        for name in self.metrics:
            _check_name("evaluation.metrics", name, ())

    def sampling(self, trained: SamplingConfig) -> SamplingConfig:
        """Return the settings of sampled completions, from those of the training.

        Raises:
            UserError: the temperature is not a number above 0.
        """
        if self.temperature is None:
            return trained
        if not 0.0 < self.temperature < float("inf"):
            raise UserError(
                f"evaluation.temperature: got {self.temperature}, expected a number above 0; for the most probable "
                "completion set `greedy: true`"
            )
        return replace(trained, temperature=self.temperature)


def _check_name(where: str, name: str, others: Collection[str]) -> None:
    if not name or any(c.isspace() or c == "/" for c in name) or keys.is_taken(name) or name in others:
        raise UserError(
            f"{where}: got the name {name!r}, expected a word without / that no other held-out scalar begins with; "
            "rename it"
        )


class Evaluated(Protocol):
    """What an evaluation asks of a module."""

    policy: LanguageModel

    def sample(self, prompts: PromptBatch, group_size: int, step: int, engine: RolloutEngine | None) -> Rollout:
        """Sample completions."""
        ...

    def with_reference(self, rollout: Rollout, temperature: float) -> Rollout:
        """Add the reference's log-probabilities, where the module has a reference."""
        ...

    def score(self, rollout: Rollout) -> ScoredRollout:
        """Score completions."""
        ...


class Evaluator:
    """Completes and scores the prompts of held-out sets, and keeps the statistics of an evaluation.

    Every evaluation draws the same random numbers. Neither the batches nor the ranks that prompts are in change what is
    found, but for rounding.
    """

    def __init__(self, settings: HeldOutEvaluation, trained: SamplingConfig, decoder: Decoder) -> None:
        """Import the metrics' functions.

        Raises:
            UserError: one cannot be imported, or a setting is wrong.
        """
        self.settings = settings
        self.sampled = RolloutEngine(settings.sampling(trained), decoder)
        self.greedy = RolloutEngine(trained.unfiltered(), decoder, most_probable) if settings.greedy else None
        self.metrics = {
            name: metric if isinstance(metric, RewardFunction) else RewardFunction(metric, name)
            for name, metric in settings.metrics.items()
        }
        self._found: defaultdict[tuple[int, bool], HeldOutMetrics] = defaultdict(HeldOutMetrics)

    def check(self, data: L.LightningDataModule) -> None:
        """Raise `UserError` for held-out sets whose names are those of other scalars."""
        check_set_names(data, self.metrics)

    def check_columns(self, tables: Mapping[str, Collection[str]]) -> None:
        """Raise `UserError` if a metric needs a column that a held-out table lacks; "train" is not looked at."""
        for metric in self.metrics.values():
            metric.check_columns({name: columns for name, columns in tables.items() if name != "train"})

    def step(self, module: Evaluated, prompts: PromptBatch, which: int) -> ScoredRollout:
        """Complete and score a batch of the held-out set at this place; return the sampled completions."""
        settings = self.settings
        rollout = module.sample(prompts, settings.samples, HELD_OUT_STEP, self.sampled)
        rollout = module.with_reference(rollout, self.sampled.sampling.temperature)
        scored, metrics = self._scored(module, rollout)
        found = self._found[which, False]
        found.update(scored, metrics)
        found.update_policy(
            scored, module.policy.completion_statistics(scored.rollout, self.sampled.sampling.temperature)
        )
        found.update_passes(scored, metrics, settings.pass_at, settings.pass_threshold)
        if self.greedy is not None:
            # No number is drawn, so any seed will do.
            rollout = self.greedy.generate(module.policy, prompts, 1, 0, HELD_OUT_STEP)
            self._found[which, True].update(*self._scored(module, rollout))
        return scored

    def _scored(self, module: Any, rollout: Rollout) -> tuple[ScoredRollout, dict[str, Tensor]]:
        scored = module.score(rollout)
        with kept_if_scoring_fails(module, scored.rollout):
            begun = {name: metric.begin(scored.rollout) for name, metric in self.metrics.items()}
            found = {name: values for name, scores in begun.items() for values in scores().values()}
        return scored, found

    def compute(self, names: Sequence[str], axes: Mapping[str, float]) -> dict[str, float]:
        """Return the statistics since the last reset over all ranks, of held-out sets with these names.

        `axes`, such as the cost of the training, are what each set's are drawn against.
        """
        sets = []
        for which, _ in enumerate(names):
            found = self._found[which, False].compute() | dict(axes)
            found |= {keys.greedy(key): value for key, value in self._found[which, True].compute().items()}
            sets.append(found)
        return by_set(names, sets)

    def reset(self) -> None:
        for found in self._found.values():
            found.reset()


def held_out_names(trainer: L.Trainer) -> Sequence[str]:
    """Return the name of each held-out set that is evaluated now, in the order of their loaders; "" is none."""
    return [""] if trainer.testing else _names(trainer.datamodule)  # type: ignore[attr-defined]


def _names(data: L.LightningDataModule | None) -> Sequence[str]:
    return getattr(data, "held_out_names", []) or [""]


def check_set_names(data: L.LightningDataModule | None, others: Collection[str] = ()) -> None:
    """Raise `UserError` for held-out sets whose names are those of other scalars, or of these `others`."""
    for name in _names(data):
        if name:
            _check_name("data.validation", name, others)


def by_set(names: Sequence[str], found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what was found of each held-out set under its name, and that of the first under the bare keys, too.

    >>> by_set(["easy", "hard"], [{"loss": 1.0}, {"loss": 2.0}])
    {'easy/loss': 1.0, 'loss': 1.0, 'hard/loss': 2.0}
    """
    result: dict[str, float] = {}
    for which, (name, metrics) in enumerate(zip(names, found, strict=True)):
        result |= {keys.of_set(name, key): value for key, value in metrics.items()}
        if which == 0:
            result |= metrics
    return result
