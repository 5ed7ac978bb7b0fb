"""GRPO and GRPOVI: rollout, rewards, adjustment, advantages, update."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX as EXTRA_STATE

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment import (
    Adjustment,
    IdentityAdjustment,
    Increase,
    SequenceWeights,
    UniformWeights,
    VarianceIncrease,
    increase_metrics,
)
from grpovi_lightning.advantages import Advantage, GroupAdvantage
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses import GRPOLoss, ImportanceSampling, PolicyLoss
from grpovi_lightning.models import CausalLMSource, LanguageModel, WithoutAdapter
from grpovi_lightning.modules.checkpoints import FrozenLeftOut
from grpovi_lightning.modules.evaluation import HeldOutMetrics
from grpovi_lightning.modules.logging import log_held_out, log_scalars
from grpovi_lightning.modules.optimizers import optimizer_setup
from grpovi_lightning.modules.policy_update import PolicyUpdates
from grpovi_lightning.modules.ranks import gather_over_ranks, max_over_ranks, metrics_over_ranks, sum_over_ranks
from grpovi_lightning.modules.resampling import DynamicResampling, ScoredRollout
from grpovi_lightning.modules.step_metrics import as_floats, pair_agreement, rollout_metrics, step_record, step_work
from grpovi_lightning.modules.update_metrics import combined_metrics
from grpovi_lightning.randomness import HELD_OUT_STEP, resolve_seed
from grpovi_lightning.rewards import Reward
from grpovi_lightning.rollout import Decoder, RolloutEngine, SamplingConfig
from grpovi_lightning.structures import PromptBatch, Rollout
from grpovi_lightning.timing import StepClock, phase


class GRPOModule(FrozenLeftOut, PolicyUpdates):
    """Group relative policy optimisation (arXiv 2402.03300); with `VarianceIncrease`, GRPOVI (arXiv 2505.23247).

    One training step is one rollout: G completions for each of P prompts, scored, adjusted, turned into
    advantages, followed by `num_iterations` updates. The reference policy is the initial policy, frozen.
    """

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
        adjustment: Adjustment | None = None,
        advantage: Advantage | None = None,
        loss: PolicyLoss | None = None,
        counterfactual: VarianceIncrease | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
        num_iterations: int = 1,
        num_minibatches: int = 1,
        prompts_per_micro_batch: int | None = None,
        tokens_per_micro_batch: int | None = None,
        mask_truncated_completions: bool = False,
        skip_silent_groups: bool = False,
        importance_sampling: ImportanceSampling | None = None,
        resampling: DynamicResampling | None = None,
        seed: int | None = None,
    ) -> None:
        """Composes the algorithm; models are loaded in `configure_model`.

        Args:
            policy: where the initial policy comes from; a second copy of it is the reference.
            reward: what completions are scored with.
            group_size: G, completions per prompt.
            sampling: how completions are sampled.
            decoder: how they are decoded; default `GroupDecoder`. It changes the time, completions by rounding alone.
            compile_passes: compiles the passes over completions, the reference policy's and the update's with its
                gradient, by `torch.compile`. The first steps then take minutes, later ones less time. It changes
                log-probabilities by rounding alone.
            adjustment: what happens to the rewards before the advantages; default none (GRPO).
            advantage: adjusted rewards to advantages.
            loss: the policy loss; default `GRPOLoss` without KL penalty.
            counterfactual: the variance increase whose effect on each rollout is logged in a run that applies none.
                Default: the paper's weights where the run loads a reference policy, else uniform weights.
            optimizer: called with the policy's parameters.
            lr_scheduler: called with the optimizer; stepped once per update.
            max_grad_norm: gradients are clipped to this norm.
            num_iterations: passes over each rollout.
            num_minibatches: updates in each pass; it divides the prompts of a step and process.
            prompts_per_micro_batch: prompts, each with its whole group, in one forward pass of the update;
                None: no limit. Changes memory, not the gradient.
            tokens_per_micro_batch: tokens of one such pass, padding included; None: no limit.
            mask_truncated_completions: leaves completions without an end token out of the loss (DAPO). Denominators
                that count tokens then count those of the others.
            skip_silent_groups: spares the forward pass of groups without any gradient: no advantage differs from 0
                and no KL penalty pulls. The gradient stays the same; `entropy` and the clip ratios are then means
                over the groups that do go through the model.
            importance_sampling: corrects for a sampler that differs from the trained policy, as in mixed precision;
                None: no correction.
            resampling: replaces groups without reward variance by those of spare prompts; None: they stay.
            seed: seeds the sampling; None: the run's `seed_everything`.

        Raises:
            UserError: settings that cannot work, or cannot take effect.
        """
        super().__init__(
            loss=loss or GRPOLoss(),
            temperature=sampling.temperature,
            lr_scheduler=lr_scheduler,
            max_grad_norm=max_grad_norm,
            num_iterations=num_iterations,
            num_minibatches=num_minibatches,
            prompts_per_micro_batch=prompts_per_micro_batch,
            tokens_per_micro_batch=tokens_per_micro_batch,
            mask_truncated_completions=mask_truncated_completions,
            skip_silent_groups=skip_silent_groups,
            importance_sampling=importance_sampling,
            seed=seed,
        )
        self.policy_source, self.reward = policy, reward
        self.group_size, self.resampling, self.compile_passes = group_size, resampling, compile_passes
        self.engine = RolloutEngine(sampling, decoder)
        self.adjustment = adjustment or IdentityAdjustment()
        self.advantage = advantage or GroupAdvantage()
        self.needs_reference = self.loss.needs_reference or self.adjustment.needs_reference
        if counterfactual is None:
            counterfactual = VarianceIncrease(SequenceWeights() if self.needs_reference else UniformWeights())
        self.counterfactual = counterfactual
        self.needs_reference |= counterfactual.needs_reference
        self.optimizer = optimizer
        self._check()
        self.reference: LanguageModel | WithoutAdapter | None = None
        self.held_out = HeldOutMetrics()
        self.clock = StepClock()
        self.register_buffer("n_tokens", torch.zeros((), dtype=torch.long))
        self.register_buffer("train_seconds", torch.zeros((), dtype=torch.float64))

    def _check(self) -> None:
        if self.group_size < 2:
            raise UserError(
                f"group_size: got {self.group_size}, expected at least 2; the advantage of a completion is its reward "
                "relative to its group"
            )
        if self.compile_passes and getattr(self.policy_source, "gradient_checkpointing", False):
            raise UserError(
                "compile_passes: got it with gradient_checkpointing, under which updates cannot run a prompt once for "
                "its group; leave one of the two out"
            )
        if self.group_size == 2 and self.advantage.standardised and not self.adjustment.changes_pairs:
            raise UserError(
                f"{type(self.adjustment).__name__} cannot take effect: got group_size 2 with scale_rewards group, "
                "where standardised advantages are +-1 whatever the rewards; use larger groups or scale_rewards none"
            )

    def check_inputs(self) -> None:
        """Raises `UserError` for checkpoints that are not there, before anything is loaded."""
        self.policy_source.check()
        self.reward.check()

    def check_settings(self, trainer: L.Trainer, data: L.LightningDataModule) -> None:
        """See `PolicyUpdates`."""
        super().check_settings(trainer, data)
        spare = getattr(data, "spare_per_step", 0)
        if (self.resampling is None) != (spare == 0):
            raise UserError(
                f"spare_prompts_per_step: got {spare} with resampling {type(self.resampling).__name__}; neither has an "
                "effect without the other: set both or none"
            )

    def configure_model(self) -> None:
        """Loads policy, reference and reward model once."""
        if self.policy is not None:
            return
        self.policy = self.policy_source.load()
        if self.needs_reference:
            self.reference = self.policy_source.load_reference(self.policy)
        if self.compile_passes:
            for model in (self.policy, self.reference):
                if isinstance(model, LanguageModel):  # a reference without the adapter runs the policy's code
                    model.compile_passes()
        self.reward.load(self.policy.tokenizer)

    def on_fit_start(self) -> None:
        """Says so where the diagnostics cannot use the paper's weights."""
        if not self.needs_reference:
            self.print(
                "adjustment/*: nothing here needs a reference policy, so none is loaded, and what GRPOVI would have "
                "done is logged for uniform weights; set model.counterfactual to load one for the paper's weights"
            )

    def configure_optimizers(self) -> Any:
        """The optimizer over the policy's parameters, and the schedule."""
        assert self.policy is not None
        return optimizer_setup(self.policy.parameters(), self.optimizer, self.lr_scheduler)

    # The algorithm.

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> dict[str, Any]:
        """One step of GRPO / GRPOVI (Algorithm 3 of arXiv 2505.23247)."""
        self.clock.start()
        sampled = self.roll_out(prompts)
        scored = self.resample(sampled, prompts.spare)
        rollout, rewards = scored.rollout, scored.rewards
        with phase(keys.STEP_TIME_ADJUSTMENT):
            adjusted = self.adjustment(rewards, rollout)
        advantages = self.advantage(adjusted.rewards)
        experience = self.experience(rollout, rewards, advantages)
        updates = [self.update(experience, chosen) for chosen in self.minibatches(rollout)]
        with phase(keys.STEP_TIME_REWARD):
            lesson = self.reward.learn(rollout, resolve_seed(self.seed), lambda: self.trainer.received_sigterm)
        self.n_tokens += sum_over_ranks(self, scored.n_tokens)
        times = self.clock.stop()
        self.train_seconds += times[keys.STEP_TIME]
        increase = adjusted.increase or self.counterfactual.increase(rewards, rollout)
        if lesson.changed:  # only now: what was just logged is of the reward that it was sampled under
            self.adjustment.reward_changed()
            self.counterfactual.reward_changed()
        of_rank = times | {keys.TRAIN_SECONDS: float(self.train_seconds)}
        if self.resampling is not None:
            of_rank[keys.FRAC_GROUPS_RESAMPLED] = scored.n_replaced / len(rewards)
        metrics = self.describe(scored, increase, advantages) | combined_metrics(updates)
        metrics |= metrics_over_ranks(self, of_rank) | {keys.NUM_TOKENS: float(self.n_tokens), **lesson.metrics}
        log_scalars(self, metrics, int(self.n_steps), shown=[keys.REWARD])
        self.n_steps += 1
        return step_record(
            rollout,
            rewards,
            bounded=rewards if adjusted.increase is None else increase.rewards,
            adjusted=adjusted.rewards,
            advantages=advantages,
            adjustment=type(self.adjustment).__name__,
            sampled=(sampled.rollout.completion_ids, sampled.rollout.completion_mask),
            work=step_work(self.policy, experience, self.num_iterations, self.skip_silent_groups),
            problems=list(lesson.problems),
        )

    def describe(self, scored: ScoredRollout, increase: Increase, advantages: Tensor) -> dict[str, float]:
        """The scalars of a rollout, over the completions of all ranks."""
        rollout, rewards = scored.rollout, scored.rewards
        components = {f"rewards/{name}": rollout.grouped(values) for name, values in scored.components.items()}
        problem = {field.name: getattr(increase, field.name) for field in fields(increase)}
        everything = gather_over_ranks(
            self,
            {
                "lengths": rollout.grouped(rollout.lengths),
                "truncated": rollout.grouped(rollout.truncated),
                "raw": rewards,
                "advantages": advantages,
                "raw_advantages": self.advantage(rewards),
                "increased_advantages": self.advantage(increase.adjusted),
                **components,
                **problem,
            },
        )
        tensors = rollout_metrics(
            everything["lengths"],
            everything["truncated"],
            everything["raw"],
            {name: everything[f"rewards/{name}"] for name in scored.components},
            everything["advantages"],
        )
        observed = [name for name, weight in self.reward.weights().items() if weight == 0.0]
        tensors |= {
            keys.pair_agreement(name): pair_agreement(everything["raw"], everything[f"rewards/{name}"])
            for name in observed
        }
        tensors |= increase_metrics(
            Increase(**{name: everything[name] for name in problem}),
            everything["raw_advantages"],
            everything["increased_advantages"],
        )
        return as_floats(tensors)

    def sample(self, prompts: PromptBatch, group_size: int, step: int) -> Rollout:
        """Completions of the current policy, with the reference's log-probabilities where they are needed."""
        assert self.policy is not None
        rollout = self.engine.generate(self.policy, prompts, group_size, resolve_seed(self.seed), step)
        if self.reference is None:
            return rollout
        with phase(keys.STEP_TIME_REFERENCE):
            return rollout.with_reference(self.logprobs(self.reference, rollout))

    def roll_out(self, prompts: PromptBatch) -> ScoredRollout:
        """G completions for each of the prompts, scored."""
        rollout = self.sample(prompts, self.group_size, int(self.n_steps))
        with phase(keys.STEP_TIME_REWARD):
            components = self.reward.components(rollout)
            rewards = rollout.grouped(self.reward.total(components, self.group_size))
        return ScoredRollout(rollout, components, rewards, rollout.lengths.sum())

    def resample(self, scored: ScoredRollout, spare: PromptBatch | None) -> ScoredRollout:
        """Replaces silent groups by those of spare prompts, where the YAML asks for it; as often on every rank."""
        if self.resampling is None:
            return scored
        if spare is None:
            raise UserError("dynamic resampling: got no spare prompts; set the data's `spare_prompts_per_step`")
        used = 0
        for _ in range(self.resampling.max_tries):
            silent = scored.silent_groups()
            wanted = max_over_ranks(self, min(len(silent), len(spare) - used))
            if wanted == 0:
                break
            scored = scored.replaced(silent, self.roll_out(spare.select(range(used, used + wanted))))
            used += wanted
        return scored

    # Held-out evaluation.

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> dict[str, Any]:
        """One completion for each held-out prompt, with the same random numbers at every evaluation."""
        assert self.policy is not None
        rollout = self.sample(prompts, 1, HELD_OUT_STEP)
        components = self.reward.components(rollout)
        statistics = self.policy.completion_statistics(rollout, self.temperature)
        rewards = self.reward.total(components, group_size=1)
        self.held_out.update(rollout, rewards, components, statistics)
        return step_record(rollout, rewards[:, None])

    def on_validation_epoch_end(self) -> None:
        """Logs the held-out means, with the training cost so far as further axes."""
        metrics = self.held_out.compute()
        metrics |= {keys.NUM_TOKENS: float(self.n_tokens), keys.TRAIN_SECONDS: float(self.train_seconds)}
        metrics |= self.reward.progress()
        log_held_out(self, metrics, int(self.n_steps), shown=[keys.REWARD])
        self.held_out.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def frozen_state(self) -> set[str]:
        """Names of the state of the reference, of rewards but for what they learned, and of weights under adapters."""
        under = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        frozen = {name for name in self.state_dict() if name.startswith(("reference.", "reward."))}
        return under | {name for name in frozen if not name.endswith(EXTRA_STATE)}

    def save_pretrained(self, folder: str) -> None:
        """Writes policy and tokenizer as a Hugging Face checkpoint folder, and what the reward learned beside it."""
        assert self.policy is not None
        self.policy.save_pretrained(folder)
        self.reward.save_learned(Path(folder).with_name("reward_model"))
