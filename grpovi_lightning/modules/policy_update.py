"""How a policy learns from a rollout: minibatches, micro-batches, one optimiser step each."""

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.losses import ImportanceSampling, PolicyLoss
from grpovi_lightning.models import LanguageModel, WithoutAdapter
from grpovi_lightning.modules.batching import micro_batches, minibatches
from grpovi_lightning.modules.non_finite import refuse_non_finite
from grpovi_lightning.modules.ranks import max_over_ranks, metrics_over_ranks, share_of_rank, sum_over_ranks
from grpovi_lightning.modules.update_metrics import UpdateMetrics, UpdateResult
from grpovi_lightning.randomness import resolve_seed
from grpovi_lightning.structures import Experience, Rollout
from grpovi_lightning.timing import phase


class PolicyUpdates(L.LightningModule):
    """The half of a policy-gradient module that comes after the advantages.

    Neither micro-batches nor ranks change the gradient: each update has one denominator, that of its whole batch, and
    minibatches are dealt so that the ranks' parts of one make up the minibatch of a single process.
    """

    n_steps: Tensor

    def __init__(
        self,
        loss: PolicyLoss,
        temperature: float,
        lr_scheduler: LRSchedulerCallable | None,
        max_grad_norm: float,
        num_iterations: int,
        num_minibatches: int,
        prompts_per_micro_batch: int | None,
        tokens_per_micro_batch: int | None,
        mask_truncated_completions: bool,
        skip_silent_groups: bool,
        importance_sampling: ImportanceSampling | None,
        seed: int | None,
    ) -> None:
        """Takes the settings that `GRPOModule` documents.

        Raises:
            UserError: settings that cannot work, or cannot take effect.
        """
        super().__init__()
        self.automatic_optimization = False
        self.loss, self.temperature = loss, temperature
        self.lr_scheduler, self.max_grad_norm = lr_scheduler, max_grad_norm
        self.num_iterations, self.num_minibatches = num_iterations, num_minibatches
        self.prompts_per_micro_batch, self.tokens_per_micro_batch = prompts_per_micro_batch, tokens_per_micro_batch
        self.mask_truncated_completions, self.skip_silent_groups = mask_truncated_completions, skip_silent_groups
        self.importance_sampling, self.seed = importance_sampling, seed
        self.policy: LanguageModel | None = None
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.long))
        if not max_grad_norm > 0:
            raise UserError(f"max_grad_norm: got {max_grad_norm}, expected above 0")
        for name in ("num_iterations", "num_minibatches", "prompts_per_micro_batch", "tokens_per_micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: got {value}, expected at least 1")
        if skip_silent_groups and loss.beta > 0:
            raise UserError(
                f"skip_silent_groups cannot take effect: got beta {loss.beta}, whose KL penalty has a gradient in "
                "every group; set beta 0 or leave it out"
            )

    @property
    def updates_per_rollout(self) -> int:
        """Optimiser steps in one training step."""
        return self.num_iterations * self.num_minibatches

    def check_settings(self, trainer: L.Trainer, data: L.LightningDataModule) -> None:
        """Compares the settings with those of the trainer and the data, before anything is loaded.

        Raises:
            UserError: they cannot work together.
        """
        if trainer.precision in ("16-mixed", "16-true", "transformer-engine-float16"):
            raise UserError(
                f"trainer.precision: got {trainer.precision}, whose gradients need scaling, which the updates here do "
                "not do; use bf16-mixed or 32-true"
            )
        if trainer.precision == "bf16-true":
            raise UserError(
                "trainer.precision: got bf16-true, which would round the rewards' models and the state of ranges, too; "
                "set the policy's dtype to bfloat16, or use bf16-mixed"
            )
        for name, value, off in (
            ("gradient_clip_val", trainer.gradient_clip_val, None),
            ("accumulate_grad_batches", trainer.accumulate_grad_batches, 1),
        ):
            if value != off:
                raise UserError(
                    f"trainer.{name}: got {value}, which has no effect on updates that the module makes itself; leave "
                    "it out and set the model's max_grad_norm or tokens_per_micro_batch"
                )
        if trainer.max_steps % self.updates_per_rollout:
            raise UserError(
                f"trainer.max_steps counts updates: got {trainer.max_steps} with {self.updates_per_rollout} updates on "
                "each rollout; choose a multiple"
            )
        share = getattr(data, "batch_size", self.num_minibatches) // trainer.world_size
        if share % self.num_minibatches:
            raise UserError(
                f"num_minibatches: got {self.num_minibatches}, which does not divide the {share} prompts of a step and "
                "process; choose a divisor"
            )

    def experience(self, rollout: Rollout, rewards: Tensor, advantages: Tensor) -> Experience:
        """What is learned from: unscorable completions never are, truncated ones where the YAML says so.

        Raises:
            TrainingError: no token of the step is left, on any rank.
        """
        assert self.policy is not None
        kept = ~rewards.isnan().flatten()
        if self.mask_truncated_completions:
            kept = kept & ~rollout.truncated
        loss_mask = rollout.completion_mask & kept[:, None]
        if int(sum_over_ranks(self, loss_mask.sum())) == 0:
            raise TrainingError(
                f"step {int(self.n_steps)}: no completion to learn from: of {len(kept)}, {int(rewards.isnan().sum())} "
                f"got no reward and {int(rollout.truncated.sum())} were truncated; look at the reward function, or "
                "raise max_completion_length"
            )
        if self.importance_sampling is None and self.trainer.precision in ("32-true", "64-true"):
            return Experience(rollout, advantages.flatten(), loss_mask, rollout.old_logprobs)
        # In lower precision a cached forward rounds otherwise than the update's, which clipping would take for change.
        if self.updates_per_rollout == 1:
            return Experience(rollout, advantages.flatten(), loss_mask, None)
        with phase(keys.STEP_TIME_FORWARD):
            old_logprobs, weights = self.logprobs(self.policy, rollout), None
        if self.importance_sampling is not None:
            weights = self.importance_sampling(old_logprobs - rollout.old_logprobs)
        return Experience(rollout, advantages.flatten(), loss_mask, old_logprobs, weights)

    def minibatches(self, rollout: Rollout) -> list[list[int]]:
        """The prompts of each update on a rollout."""
        n_prompts = len(rollout.prompts)
        if n_prompts % self.num_minibatches:
            raise UserError(
                f"num_minibatches: got {self.num_minibatches}, which does not divide the {n_prompts} prompts of a step "
                "and process; choose a divisor"
            )
        seed, step = resolve_seed(self.seed), int(self.n_steps)
        return list(minibatches(n_prompts, self.num_iterations, self.num_minibatches, seed, step))

    def update(self, experience: Experience, prompts: list[int]) -> UpdateResult:
        """One optimiser step on some prompts with their groups, in micro-batches with one common denominator."""
        assert self.policy is not None
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        rollout_mask, mask = experience.loss_mask, experience.loss_mask[experience.rollout.rows(prompts)]
        denominator = share_of_rank(self, self.loss.denominator(mask, rollout_mask))
        parts = self.micro_batches(experience, prompts)
        metrics = UpdateMetrics()
        for part in parts:
            batch = experience.select(part)
            with phase(keys.STEP_TIME_FORWARD):
                statistics = self.policy.completion_statistics(batch.rollout, self.temperature)
                old_logprobs, sampling_weights = self.old_policy(batch, statistics.logprobs.detach())
                output = self.loss(
                    statistics.logprobs,
                    old_logprobs,
                    batch.advantages,
                    batch.loss_mask,
                    batch.rollout.ref_logprobs,
                    denominator=denominator,
                    sampling_weights=sampling_weights,
                )
            with phase(keys.STEP_TIME_BACKWARD):
                self.manual_backward(output.loss)
            metrics.add(batch, output, statistics)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        n_tokens = share_of_rank(self, metrics.n_tokens)
        found = metrics_over_ranks(self, metrics.compute(n_tokens) | {keys.GRAD_NORM: float(grad_norm)})
        refuse_non_finite(self, experience.select(prompts), found)
        found[keys.LEARNING_RATE] = optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]
        with phase(keys.STEP_TIME_OPTIMIZER):
            optimizer.step()  # type: ignore[union-attr]
        if self.lr_scheduler is not None:
            self.lr_schedulers().step()  # type: ignore[union-attr]
        return UpdateResult(found, float(n_tokens))

    def old_policy(self, batch: Experience, logprobs: Tensor) -> tuple[Tensor, Tensor | None]:
        """(log-probabilities before the first update, importance weights), [b, T] each.

        Where the one update of a rollout is made, its own forward pass, `logprobs`, is that of the policy before it.
        """
        if batch.old_logprobs is not None:
            return batch.old_logprobs, batch.sampling_weights
        if self.importance_sampling is None:
            return logprobs, None
        log_ratio = torch.where(batch.rollout.completion_mask, logprobs - batch.rollout.old_logprobs, 0.0)
        return logprobs, self.importance_sampling(log_ratio)

    def micro_batches(self, experience: Experience, prompts: list[int]) -> list[list[int]]:
        """The parts of an update that go through the model one by one, as many on every rank."""
        rollout, chosen = experience.rollout, prompts
        if self.skip_silent_groups:
            heard = torch.where(experience.loss_mask.any(dim=1), experience.advantages, 0.0)
            speaks = rollout.grouped(heard.abs()).amax(dim=1) > 0
            chosen = [p for p in prompts if bool(speaks[p])] or prompts[:1]
        n_parts = max_over_ranks(self, len(self.parts(self.policy, rollout, chosen)))
        if len(chosen) < n_parts:  # silent groups fill up: they add nothing to the gradient
            chosen = chosen + [p for p in prompts if p not in chosen][: n_parts - len(chosen)]
        return self.parts(self.policy, rollout, chosen, n_parts)

    def parts(
        self, model: LanguageModel | WithoutAdapter | None, rollout: Rollout, prompts: list[int], at_least: int = 1
    ) -> list[list[int]]:
        """Prompts in parts within the limits, for a model."""
        assert model is not None
        limits = self.prompts_per_micro_batch, self.tokens_per_micro_batch
        return micro_batches(rollout, prompts, *limits, at_least=at_least, shares_prefix=model.runs_prompts_once)

    @torch.no_grad()
    def logprobs(self, model: LanguageModel | WithoutAdapter, rollout: Rollout) -> Tensor:
        """Log-probabilities of the completions under a model, [B, T], 0 where masked."""
        found = torch.zeros_like(rollout.old_logprobs)
        for part in self.parts(model, rollout, list(range(len(rollout.prompts)))):
            some = rollout.select(part)
            logprobs = model.completion_statistics(some, self.temperature).logprobs
            found[rollout.rows(part), : logprobs.shape[1]] = torch.where(some.completion_mask, logprobs, 0.0)
        return found
