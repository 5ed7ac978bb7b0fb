"""GRPO and GRPOVI: rollout, rewards, adjustment, advantages, update."""

from collections.abc import Iterator
from math import isfinite
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment import (
    Adjustment,
    IdentityAdjustment,
    SequenceWeights,
    UniformWeights,
    VarianceIncrease,
    increase_metrics,
)
from grpovi_lightning.advantages import GroupAdvantage
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses import GRPOLoss, PolicyLoss
from grpovi_lightning.models import CausalLMSource, LanguageModel
from grpovi_lightning.modules.clock import StepClock
from grpovi_lightning.modules.evaluation import HeldOutMetrics
from grpovi_lightning.modules.logging import log_held_out, log_scalars
from grpovi_lightning.modules.optimizers import optimizer_setup
from grpovi_lightning.modules.step_metrics import as_floats, rollout_metrics, step_record
from grpovi_lightning.ops import masked_mean
from grpovi_lightning.randomness import HELD_OUT_STEP, resolve_seed
from grpovi_lightning.rewards import Reward
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig
from grpovi_lightning.structures import PromptBatch, Rollout


class GRPOModule(L.LightningModule):
    """Group relative policy optimisation (arXiv 2402.03300); with `VarianceIncrease`, GRPOVI (arXiv 2505.23247).

    One training step is one rollout: G completions for each of P prompts, scored, adjusted, turned into
    advantages, followed by `num_iterations` updates. The reference policy is the initial policy, frozen.
    """

    n_steps: Tensor
    n_tokens: Tensor
    train_seconds: Tensor

    def __init__(
        self,
        policy: CausalLMSource,
        reward: Reward,
        group_size: int = 8,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008  a frozen value
        adjustment: Adjustment | None = None,
        advantage: GroupAdvantage | None = None,
        loss: PolicyLoss | None = None,
        counterfactual: VarianceIncrease | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
        num_iterations: int = 1,
        prompts_per_micro_batch: int | None = None,
        seed: int | None = None,
    ) -> None:
        """Composes the algorithm; models are loaded in `configure_model`.

        Args:
            policy: where the initial policy comes from; a second copy of it is the reference.
            reward: what completions are scored with.
            group_size: G, completions per prompt.
            sampling: how completions are sampled.
            adjustment: what happens to the rewards before the advantages; default none (GRPO).
            advantage: adjusted rewards to advantages.
            loss: the policy loss; default `GRPOLoss` without KL penalty.
            counterfactual: the variance increase whose effect on each rollout is logged in a run that applies none.
                Default: the paper's weights where the run loads a reference policy, else uniform weights.
            optimizer: called with the policy's parameters.
            lr_scheduler: called with the optimizer; stepped once per update.
            max_grad_norm: gradients are clipped to this norm.
            num_iterations: updates on each rollout.
            prompts_per_micro_batch: prompts, each with its whole group, in one forward pass of the update;
                None: all. Changes memory, not the gradient.
            seed: seeds the sampling; None: the run's `seed_everything`.

        Raises:
            UserError: settings that cannot work, or cannot take effect.
        """
        super().__init__()
        self.automatic_optimization = False
        self.policy_source, self.reward = policy, reward
        self.group_size, self.num_iterations = group_size, num_iterations
        self.prompts_per_micro_batch = prompts_per_micro_batch
        self.engine = RolloutEngine(sampling)
        self.adjustment = adjustment or IdentityAdjustment()
        self.advantage = advantage or GroupAdvantage()
        self.loss = loss or GRPOLoss()
        self.needs_reference = self.loss.needs_reference or self.adjustment.needs_reference
        if counterfactual is None:
            counterfactual = VarianceIncrease(SequenceWeights() if self.needs_reference else UniformWeights())
        self.counterfactual = counterfactual
        self.needs_reference |= counterfactual.needs_reference
        self.optimizer, self.lr_scheduler, self.max_grad_norm = optimizer, lr_scheduler, max_grad_norm
        self.seed = seed
        self._check()
        self.policy: LanguageModel | None = None
        self.reference: LanguageModel | None = None
        self.held_out = HeldOutMetrics()
        self.clock = StepClock()
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("n_tokens", torch.zeros((), dtype=torch.long))
        self.register_buffer("train_seconds", torch.zeros((), dtype=torch.float64))

    def _check(self) -> None:
        if self.group_size < 2:
            raise UserError(
                f"group_size: got {self.group_size}, expected at least 2; the advantage of a completion is its reward "
                "relative to its group"
            )
        if self.group_size == 2 and self.advantage.standardised and not self.adjustment.changes_pairs:
            raise UserError(
                f"{type(self.adjustment).__name__} cannot take effect: got group_size 2 with scale_rewards group, "
                "where standardised advantages are +-1 whatever the rewards; use larger groups or scale_rewards none"
            )
        if self.num_iterations < 1 or self.max_grad_norm <= 0:
            raise UserError(
                f"got num_iterations {self.num_iterations}, max_grad_norm {self.max_grad_norm}; "
                "expected at least 1 and above 0"
            )
        if self.prompts_per_micro_batch is not None and self.prompts_per_micro_batch < 1:
            raise UserError(f"prompts_per_micro_batch: got {self.prompts_per_micro_batch}, expected at least 1")

    def check_inputs(self) -> None:
        """Raises `UserError` for checkpoints that are not there, before anything is loaded."""
        self.policy_source.check()
        self.reward.check()

    def configure_model(self) -> None:
        """Loads policy, reference and reward model once."""
        if self.policy is not None:
            return
        self.policy = self.policy_source.load()
        if self.needs_reference:
            self.reference = self.policy_source.load()
            self.reference.requires_grad_(False).eval()
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
        with self.clock.phase(keys.STEP_TIME_ROLLOUT):
            rollout = self.sample(prompts, self.group_size, int(self.n_steps))
        with self.clock.phase(keys.STEP_TIME_REWARD):
            components = self.reward.components(rollout)
            rewards = rollout.grouped(self.reward.total(components))
        with self.clock.phase(keys.STEP_TIME_ADJUSTMENT):
            adjusted = self.adjustment(rewards, rollout)
        advantages = self.advantage(adjusted.rewards)
        with self.clock.phase(keys.STEP_TIME_UPDATE):
            updates = [self.update(rollout, advantages.flatten()) for _ in range(self.num_iterations)]
        self.n_tokens += self._sum_over_ranks(rollout.lengths.sum())
        self.train_seconds += self.clock.total_seconds()
        increase = adjusted.increase or self.counterfactual.increase(rewards, rollout)
        tensors = rollout_metrics(rollout, rewards, components, advantages)
        tensors |= increase_metrics(increase, self.advantage(rewards), self.advantage(increase.adjusted))
        metrics = as_floats(tensors) | _mean_metrics(updates) | self.clock.seconds
        metrics |= {keys.NUM_TOKENS: float(self.n_tokens), keys.TRAIN_SECONDS: float(self.train_seconds)}
        log_scalars(self, self._mean_over_ranks(metrics), int(self.n_steps), shown=[keys.REWARD])
        self.n_steps += 1
        return step_record(
            rollout,
            rewards,
            bounded=rewards if adjusted.increase is None else increase.rewards,
            adjusted=adjusted.rewards,
            advantages=advantages,
            adjustment=type(self.adjustment).__name__,
        )

    def sample(self, prompts: PromptBatch, group_size: int, step: int) -> Rollout:
        """Completions of the current policy, with the reference's log-probabilities where they are needed."""
        assert self.policy is not None
        rollout = self.engine.generate(self.policy, prompts, group_size, resolve_seed(self.seed), step)
        if self.reference is None:
            return rollout
        with torch.no_grad():
            parts = [
                self.reference.completion_statistics(rollout, self.engine.sampling.temperature, prompts).logprobs
                for prompts in self.micro_batches(rollout)
            ]
        return rollout.with_reference(torch.where(rollout.completion_mask, torch.cat(parts), 0.0))

    def update(self, rollout: Rollout, advantages: Tensor) -> dict[str, float]:
        """One optimiser step on a rollout, in micro-batches that share the whole batch's denominator."""
        assert self.policy is not None
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        sums: dict[str, Tensor] = {}
        n_tokens = rollout.completion_mask.sum()
        for prompts in self.micro_batches(rollout):
            rows = slice(prompts.start * self.group_size, prompts.stop * self.group_size)
            mask = rollout.completion_mask[rows]
            statistics = self.policy.completion_statistics(rollout, self.engine.sampling.temperature, prompts)
            output = self.loss(
                statistics.logprobs,
                rollout.old_logprobs[rows],
                advantages[rows],
                mask,
                None if rollout.ref_logprobs is None else rollout.ref_logprobs[rows],
                denominator=len(advantages),
            )
            self.manual_backward(output.loss)
            token_means = output.metrics | {keys.ENTROPY: masked_mean(statistics.entropies, mask)}
            for name, value in token_means.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * mask.sum() / n_tokens
            sums[keys.LOSS] = sums.get(keys.LOSS, torch.zeros_like(output.loss)) + output.loss.detach()
        sums[keys.GRAD_NORM] = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        metrics = {name: float(value) for name, value in sums.items()}
        if not (isfinite(metrics[keys.LOSS]) and isfinite(metrics[keys.GRAD_NORM])):
            raise FloatingPointError(
                f"step {int(self.n_steps)}: loss {metrics[keys.LOSS]}, gradient norm {metrics[keys.GRAD_NORM]}; the "
                "update was not made; lower the learning rate or look at the rewards of this step"
            )
        metrics[keys.LEARNING_RATE] = optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]
        optimizer.step()  # type: ignore[union-attr]
        if self.lr_scheduler is not None:
            self.lr_schedulers().step()  # type: ignore[union-attr]
        return metrics

    def micro_batches(self, rollout: Rollout) -> Iterator[slice]:
        """Slices over the P prompts."""
        n_prompts = len(rollout.prompts)
        size = self.prompts_per_micro_batch or n_prompts
        return (slice(start, min(start + size, n_prompts)) for start in range(0, n_prompts, size))

    # Held-out evaluation.

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> dict[str, Any]:
        """One completion for each held-out prompt, with the same random numbers at every evaluation."""
        assert self.policy is not None
        rollout = self.sample(prompts, 1, HELD_OUT_STEP)
        components = self.reward.components(rollout)
        statistics = self.policy.completion_statistics(rollout, self.engine.sampling.temperature)
        rewards = self.reward.total(components)
        self.held_out.update(rollout, rewards, components, statistics)
        return step_record(rollout, rewards[:, None])

    def on_validation_epoch_end(self) -> None:
        """Logs the held-out means, with the training cost so far as further axes."""
        metrics = self.held_out.compute()
        metrics |= {keys.NUM_TOKENS: float(self.n_tokens), keys.TRAIN_SECONDS: float(self.train_seconds)}
        log_held_out(self, metrics, int(self.n_steps), shown=[keys.REWARD])
        self.held_out.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _mean_over_ranks(self, metrics: dict[str, float]) -> dict[str, float]:
        """One collective for all scalars of a step; every rank has the same keys."""
        if self.trainer.world_size == 1:
            return metrics
        values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=self.device)
        return dict(zip(metrics, self.trainer.strategy.reduce(values, reduce_op="mean").tolist(), strict=True))  # type: ignore[union-attr]

    def _sum_over_ranks(self, count: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(count, reduce_op="sum")  # type: ignore[return-value]

    # Checkpoints hold what changes: the policy, the optimiser, the adjustment's state and the counters.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out the frozen models, which are loaded from where they came."""
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not _frozen(k)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fills in the frozen models, so that loading can stay strict about all the rest."""
        checkpoint["state_dict"] |= {k: v for k, v in self.state_dict().items() if _frozen(k)}

    def save_pretrained(self, folder: str) -> None:
        """Writes the policy and its tokenizer as a Hugging Face checkpoint folder."""
        assert self.policy is not None
        self.policy.save_pretrained(folder)


def _frozen(key: str) -> bool:
    return key.startswith(("reference.", "reward."))


def _mean_metrics(updates: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
