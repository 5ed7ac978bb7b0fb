"""GRPO and GRPOVI: rollout, rewards, adjustment, advantages, update."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment import Adjusted, Adjustment, IdentityAdjustment, VarianceIncrease
from grpovi_lightning.advantages import Advantage, GroupAdvantage
from grpovi_lightning.data import PromptDataModule
from grpovi_lightning.distributed import is_first_rank, reduce_scalars, sum_over_ranks
from grpovi_lightning.losses import GRPOLoss, PolicyLoss
from grpovi_lightning.models import CausalLMSource, LanguageModel, Sharding, SharedReference
from grpovi_lightning.models.sharding import gathered_within
from grpovi_lightning.modules.checkpoints import FrozenLeftOut
from grpovi_lightning.modules.combination import check_combination
from grpovi_lightning.modules.evaluation import Evaluator, HeldOutEvaluation, held_out_names
from grpovi_lightning.modules.initial_sample import check_initial_sample, fit_normalisation
from grpovi_lightning.modules.kept_batch import kept_if_scoring_fails
from grpovi_lightning.modules.logging import log_held_out, log_scalars
from grpovi_lightning.modules.optimizers import optimizer_setup
from grpovi_lightning.modules.outcome import StepCost, StepOutcome
from grpovi_lightning.modules.progress import run_progress
from grpovi_lightning.modules.report import announce_diagnostics, reported, step_scalars
from grpovi_lightning.modules.settings import check_compiled, check_surroundings, usual_counterfactual
from grpovi_lightning.modules.tables import check_prompts
from grpovi_lightning.modules.update_settings import UpdateSettings
from grpovi_lightning.modules.updater import PolicyUpdater
from grpovi_lightning.modules.work import policy_work
from grpovi_lightning.randomness import resolve_seed
from grpovi_lightning.rewards import Reward
from grpovi_lightning.rewards.base import RewardUpdate
from grpovi_lightning.rollout import Decoder, RolloutEngine, SamplingConfig
from grpovi_lightning.selection import CompletionSelection, EveryCompletion, EveryPrompt, PromptSelection, ScoredRollout
from grpovi_lightning.selection.prompts import StepSampling
from grpovi_lightning.structures import PromptBatch, Rollout
from grpovi_lightning.timing import StepClock, phase
from grpovi_lightning.trainer_state import data_of, precision_of, received_sigterm


class GRPOModule(FrozenLeftOut):
    """Group relative policy optimisation (arXiv 2402.03300); with `VarianceIncrease`, GRPOVI (arXiv 2505.23247).

    One training step is one rollout: G completions for each of P prompts, scored, adjusted, turned into
    advantages, followed by the updates. The reference policy is the initial policy, frozen. Models are loaded in
    `configure_model`.

    Args:
        policy: where the initial policy comes from; a second copy of it is the reference.
        reward: what completions are scored with.
        group_size: G, completions per prompt.
        sampling: how completions are sampled.
        decoder: how they are decoded; default `GroupDecoder`. All but `VLLMDecoder` change them by rounding alone.
        compile_passes: compiles the passes over completions, the reference's and the update's, by `torch.compile`. The
            first steps then take minutes, later ones less time. Log-probabilities change by rounding alone.
        resampling: which prompts a step learns from; default those that the data hands out.
        selection: which of their completions; default all. It acts on raw rewards, before the adjustment.
        adjustment: what happens to the rewards before the advantages; default none (GRPO).
        advantage: adjusted rewards to advantages; default `GroupAdvantage`.
        loss: the policy loss; default `GRPOLoss` without KL penalty.
        updates: how a rollout is divided into updates and micro-batches, and what is left out of them.
        optimizer: called with the policy's parameters.
        lr_scheduler: called with the optimizer; stepped once per update.
        counterfactual: the variance increase whose effect on each rollout is logged in a run without an adjustment.
            Default: the paper's weights where the updates need the reference policy, else uniform weights.
        evaluation: how the policy is evaluated on held-out prompts.
        sharding: how the models are placed under `trainer.strategy: fsdp2`.
        seed: seeds the sampling; None: the run's `seed_everything`.

    Raises:
        UserError: settings that cannot work, or cannot take effect.
    """

    policy: LanguageModel
    """Loaded by `configure_model`."""
    n_steps: Tensor
    n_tokens: Tensor
    train_seconds: Tensor

    def __init__(
        self,
        policy: CausalLMSource,
        reward: Reward,
        group_size: int = 8,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008  a frozen value
        decoder: Decoder | None = None,
        compile_passes: bool = False,
        resampling: PromptSelection | None = None,
        selection: CompletionSelection | None = None,
        adjustment: Adjustment | None = None,
        advantage: Advantage | None = None,
        loss: PolicyLoss | None = None,
        updates: UpdateSettings = UpdateSettings(),  # noqa: B008  a frozen value
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
        counterfactual: VarianceIncrease | None = None,
        evaluation: HeldOutEvaluation = HeldOutEvaluation(),  # noqa: B008  a frozen value
        sharding: Sharding = Sharding(),  # noqa: B008  a frozen value
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy_source, self.reward, self.group_size = policy, reward, group_size
        self.compile_passes = compile_passes
        self.engine = RolloutEngine(sampling, decoder, on_completion=reward.on_completion())
        self.resampling, self.selection = resampling or EveryPrompt(), selection or EveryCompletion()
        self.adjustment, self.advantage = adjustment or IdentityAdjustment(), advantage or GroupAdvantage()
        loss = loss or GRPOLoss()
        self.updater = PolicyUpdater(loss, updates, sampling.temperature, self.engine.decoder.correction)
        self.optimizer, self.lr_scheduler, self.seed, self.sharding = optimizer, lr_scheduler, seed, sharding
        self.needs_reference = loss.needs_reference or self.adjustment.needs_reference
        self.counterfactual = counterfactual or usual_counterfactual(self.needs_reference)
        self.needs_reference |= self.counterfactual.needs_reference
        check_compiled(compile_passes, policy)
        check_combination(self.selection.size(group_size), reward, self.adjustment, self.advantage)
        self.reference: LanguageModel | SharedReference | None = None
        self.held_out = Evaluator(evaluation, sampling, self.engine.decoder)
        self.clock = StepClock()
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("n_tokens", torch.zeros((), dtype=torch.long))
        self.register_buffer("train_seconds", torch.zeros((), dtype=torch.float64))

    def check_inputs(self) -> None:
        """Raise `UserError` for checkpoints that are not there, before anything is loaded."""
        self.policy_source.check()
        self.engine.decoder.check(self.policy_source, self.engine.sampling)
        self.reward.check()

    def check_settings(self, trainer: L.Trainer, data: L.LightningDataModule) -> None:
        """Raise `UserError` for settings that cannot work with the trainer's or the data's, before loading."""
        check_surroundings(self, trainer, data)

    def check_columns(self, data: L.LightningDataModule | None) -> None:
        """Raise `UserError` if the reward or a metric needs a column that a table lacks, or more prompts."""
        if isinstance(data, PromptDataModule):
            check_initial_sample(self.reward, len(data.tables["train"]))
            tables = {name: data.handed_over(table.columns) for name, table in data.tables.items()}
            self.reward.check_columns(tables)
            self.held_out.check_columns(tables)

    @property
    def updates_per_rollout(self) -> int:
        """Optimiser steps in one training step."""
        return self.updater.settings.per_rollout

    def setup(self, stage: str) -> None:
        self.check_columns(self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Load policy, reference and reward model once.

        Raises:
            UserError: one cannot be loaded, or a prompt of a table is too long for one.
        """
        if not hasattr(self, "policy"):
            self.policy = self.policy_source.load()
            if self.needs_reference or self.held_out.settings.kl:
                self.reference = self.policy_source.load_reference(self.policy)
            if self.compile_passes:
                for model in (self.policy, self.reference):
                    if isinstance(model, LanguageModel):  # a reference without the adapter runs the policy's code
                        model.compile_passes()
            self.reward.load(self.policy.tokenizer)
        self.sharding.spread(self.policy, self.device_mesh, precision_of(self), self.reference, self.reward)
        check_prompts(data_of(self), self.policy, self.reward, self.engine.sampling.max_completion_length)

    def on_fit_start(self) -> None:
        announce_diagnostics(self, self.needs_reference)

    def on_train_start(self) -> None:
        """Fit a reward that is normalised over the initial policy's completions; see `fit_normalisation`."""
        fit_normalisation(self)

    on_validation_epoch_start = on_test_epoch_start = on_train_start  # whichever comes first

    def configure_optimizers(self) -> Any:
        return optimizer_setup(self.policy.parameters(), self.optimizer, self.lr_scheduler)

    # The algorithm.

    @reported
    def training_step(self, prompts: PromptBatch, batch_idx: int) -> StepOutcome:
        """Make one step of GRPO or GRPOVI (Algorithm 3 of arXiv 2505.23247)."""
        sampling = StepSampling(self.roll_out, data_of(self), resolve_seed(self.seed), int(self.n_steps))
        pool = self.resampling(prompts, sampling)  # completions of prompts that are worth it; GRPO takes all prompts
        scored = self.select(pool)  # those that are learned from, G of each prompt; GRPO takes all completions
        rollout, rewards = scored.rollout, scored.rewards  # B = P * G completions; raw rewards [P, G]
        with kept_if_scoring_fails(self, rollout):
            adjusted = self.adjust(rewards, rollout)  # [P, G]; GRPO leaves the rewards as they are
            advantages = self.advantage(adjusted.rewards, rollout.grouped(rollout.lengths))  # [P, G]
        experience = self.updater.experience(self.policy, rollout, rewards, advantages, self.trainer.precision)
        updates = [self.updater.update(self, self.policy, experience, chosen) for chosen in self.minibatches(rollout)]
        learned = self.learn(rollout)
        kind = type(self.adjustment).__name__, self.adjustment.adjusts
        return StepOutcome(pool.sampled, scored, adjusted, advantages, experience, updates, learned, *kind, pool)

    def roll_out(self, prompts: PromptBatch) -> ScoredRollout:
        """Sample G completions for each of the prompts, and score them."""
        step = int(self.n_steps)
        rollout = self.sample(prompts, self.group_size, step)
        if self.engine.decoder.draws_ahead:  # the next completions, by the policy before the update
            upcoming = data_of(self).upcoming()
            self.engine.begin(self.policy, upcoming, self.group_size, resolve_seed(self.seed), step + 1)
        if self.needs_reference:
            rollout = self.with_reference(rollout, self.engine.sampling.temperature)
        return self.score(rollout)

    def sample(self, prompts: PromptBatch, group_size: int, step: int, engine: RolloutEngine | None = None) -> Rollout:
        """Sample completions of the current policy."""
        return (engine or self.engine).generate(self.policy, prompts, group_size, resolve_seed(self.seed), step)

    def with_reference(self, rollout: Rollout, temperature: float) -> Rollout:
        """Add the log-probabilities of the reference policy, where there is one."""
        if self.reference is None:
            return rollout
        with phase(keys.STEP_TIME_REFERENCE):
            return replace(rollout, ref_logprobs=self.updater.logprobs(self.reference, rollout, temperature))

    def score(self, rollout: Rollout) -> ScoredRollout:
        """Score completions by every component of the reward, and by their total."""
        rollout = replace(rollout, progress=run_progress(self, int(self.n_steps), self.updates_per_rollout))
        with phase(keys.STEP_TIME_REWARD), kept_if_scoring_fails(self, rollout), gathered_within(self.reward):
            components = self.reward.components(rollout)
            rewards = rollout.grouped(self.reward.total(components, rollout.group_size))
        return ScoredRollout(rollout, components, rewards, rollout.lengths.sum())

    def select(self, pool: ScoredRollout) -> ScoredRollout:
        """Keep the completions that the policy learns from."""
        with kept_if_scoring_fails(self, pool.rollout, by="selection"):
            return self.selection(pool, resolve_seed(self.seed))

    def adjust(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        """Adjust raw rewards [P, G]."""
        with phase(keys.STEP_TIME_ADJUSTMENT):
            return self.adjustment(rewards, rollout)

    def minibatches(self, rollout: Rollout) -> list[list[int]]:
        """Return the prompts of each update on a rollout."""
        return self.updater.minibatches(rollout, resolve_seed(self.seed))

    def learn(self, rollout: Rollout) -> RewardUpdate:
        """Let the reward learn from the completions that the policy was trained on."""
        with phase(keys.STEP_TIME_REWARD), kept_if_scoring_fails(self, rollout), gathered_within(self.reward):
            return self.reward.learn(rollout, resolve_seed(self.seed), lambda: received_sigterm(self.trainer))

    def close_step(self, outcome: StepOutcome, seconds: dict[str, float]) -> StepCost:
        """Count and log a step that took so many seconds on this rank: `step_time`, and each phase."""
        self.n_tokens += sum_over_ranks(outcome.scored.n_tokens)
        self.train_seconds += seconds[keys.STEP_TIME]
        scalars = step_scalars(outcome, outcome.increase(self.counterfactual), self.advantage, self.reward.weights())
        of_rank = seconds | {keys.TRAIN_SECONDS: float(self.train_seconds)}
        of_rank = reduce_scalars(of_rank | self.resampling.shares(outcome.pool))
        scalars |= of_rank | {keys.NUM_TOKENS: float(self.n_tokens), **outcome.learned.metrics}
        log_scalars(self, scalars, int(self.n_steps), shown=[keys.REWARD])
        self.n_steps += 1
        if outcome.learned.changed:  # only now: what was just logged is of the reward that it was sampled under
            for part in (self.adjustment, self.counterfactual, self.resampling):
                part.reward_changed()
        work = policy_work(self.policy, outcome.experience, self.updater.settings)
        return StepCost({name: of_rank[name] for name in seconds}, int(self.n_tokens), work)

    # Held-out evaluation.

    def validation_step(self, prompts: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Evaluate a batch of a held-out set; return the sampled completions, a `ScoredRollout`, for callbacks."""
        return self.held_out.step(self, prompts, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the held-out means, with the training cost so far as further axes."""
        axes = {keys.NUM_TOKENS: float(self.n_tokens), keys.TRAIN_SECONDS: float(self.train_seconds)}
        metrics = self.held_out.compute(held_out_names(self.trainer), axes | self.reward.progress())
        log_held_out(self, metrics, int(self.n_steps), shown=[keys.REWARD])
        self.held_out.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["drawn_ahead"] = self.engine.decoder.drawn_ahead()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.engine.decoder.take_drawn_ahead(checkpoint.get("drawn_ahead"))

    def frozen_state(self) -> set[str]:
        """Return the names of state that is loaded from where it came: reference, rewards, weights under adapters."""
        elsewhere = {name for name in self.state_dict() if name.startswith(("reference.", "reward."))}
        return super().frozen_state() | elsewhere

    def save_pretrained(self, folder: str) -> None:
        """Write policy and tokenizer as a Hugging Face checkpoint folder, and what the reward learned beside it."""
        self.policy.save_pretrained(folder)
        if is_first_rank():
            self.reward.save_learned(Path(folder).with_name("reward_model"))
