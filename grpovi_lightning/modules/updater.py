"""How a policy learns from a rollout: minibatches, micro-batches, one optimiser step each."""

from collections.abc import Callable
from dataclasses import replace

import lightning as L
import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.distributed import largest_over_ranks, reduce_scalars, share_of_rank, sum_over_ranks
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.losses import ImportanceSampling, PolicyLoss
from grpovi_lightning.models import LanguageModel, SharedReference
from grpovi_lightning.models.sharding import clip_gradients, largest_together
from grpovi_lightning.modules.batching import micro_batches, minibatches
from grpovi_lightning.modules.non_finite import experience_content, refuse_non_finite
from grpovi_lightning.modules.out_of_memory import once_more_in_halves
from grpovi_lightning.modules.update_metrics import UpdateMetrics, UpdateResult
from grpovi_lightning.modules.update_settings import UpdateSettings
from grpovi_lightning.ops import TokenStatistics
from grpovi_lightning.structures import Experience, Rollout
from grpovi_lightning.timing import phase

_EXACT = ("32-true", "64-true")
"""Trainer precisions in which sampler and trainer compute alike, so that the sampler's log-probabilities are used."""


class PolicyUpdater:
    """Turns advantages into optimiser steps.

    Neither micro-batches nor ranks change the gradient: each update has one denominator, that of its whole batch. See
    `minibatches` for how prompts are dealt to the ranks.
    """

    def __init__(
        self,
        loss: PolicyLoss,
        settings: UpdateSettings,
        temperature: float,
        correction: ImportanceSampling | None = None,
    ) -> None:
        """Compose the updates.

        Args:
            loss: the policy loss.
            settings: how a rollout is divided, and what is left out.
            temperature: the sampler's, at which log-probabilities are taken.
            correction: the `importance_sampling` of settings that name none.

        Raises:
            UserError: a setting cannot take effect.
        """
        if settings.skip_zero_advantage_groups and loss.penalties:
            raise UserError(
                f"updates.skip_zero_advantage_groups cannot take effect: got {' and '.join(loss.penalties)}, and "
                "penalties have a gradient in every group; set 0 there or leave it out"
            )
        if settings.importance_sampling is None:
            settings = replace(settings, importance_sampling=correction)
        self.loss, self.settings, self.temperature = loss, settings, temperature

    def check(self, trainer: L.Trainer, data: L.LightningDataModule) -> None:
        """Compare the settings with those of the trainer and the data, before anything is loaded.

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
                    "it out and set the model's updates.max_grad_norm or updates.tokens_per_micro_batch"
                )
        if trainer.max_steps % self.settings.per_rollout:
            raise UserError(
                f"trainer.max_steps counts updates: got {trainer.max_steps} with {self.settings.per_rollout} updates "
                "on each rollout; choose a multiple"
            )
        n_minibatches = self.settings.num_minibatches
        self._check_divides(getattr(data, "batch_size", n_minibatches) // trainer.world_size)

    def _check_divides(self, n_prompts: int) -> None:
        n_minibatches = self.settings.num_minibatches
        if n_prompts % n_minibatches:
            raise UserError(
                f"updates.num_minibatches: got {n_minibatches}, which does not divide the {n_prompts} prompts of a "
                "step and process; choose a divisor"
            )

    def experience(
        self, policy: LanguageModel, rollout: Rollout, rewards: Tensor, advantages: Tensor, precision: str
    ) -> Experience:
        """Return what is learned from: never unscorable completions, nor truncated ones where the settings say so.

        `policy` is that before the updates. Raw rewards [P, G] are NaN where a completion could not be scored;
        advantages are [P, G]; `precision` is the trainer's.

        Raises:
            TrainingError: no token of the step is left, on any rank.
        """
        settings = self.settings
        kept = ~rewards.isnan().flatten()
        if settings.mask_truncated_completions:
            kept = kept & ~rollout.truncated
        loss_mask = rollout.completion_mask & kept[:, None]
        if int(sum_over_ranks(loss_mask.sum())) == 0:
            raise TrainingError(
                f"step {rollout.step}: no completion to learn from: of {len(kept)}, {int(rewards.isnan().sum())} "
                f"got no reward and {int(rollout.truncated.sum())} were truncated; look at the reward function, or "
                "raise max_completion_length"
            )
        exact = settings.importance_sampling is None and precision in _EXACT
        old_logprobs, weights, selected = rollout.old_logprobs if exact else None, None, None
        # In lower precision a cached forward rounds otherwise than the update's, which clipping would take for change.
        recomputed = not exact and settings.per_rollout > 1
        if recomputed or settings.token_selection is not None:
            with phase(keys.STEP_TIME_FORWARD):
                before = self.statistics(policy, rollout)
            if recomputed:
                old_logprobs = before.logprobs
                if settings.importance_sampling is not None:
                    weights = settings.importance_sampling(old_logprobs - rollout.old_logprobs)
            if settings.token_selection is not None:
                selected = settings.token_selection(before.entropies, loss_mask)
        return Experience(rollout, advantages.flatten(), loss_mask, old_logprobs, weights, selected)

    def minibatches(self, rollout: Rollout, seed: int) -> list[list[int]]:
        """Return the prompts of each update on a rollout."""
        n_prompts = len(rollout.prompts)
        self._check_divides(n_prompts)
        settings = self.settings
        return list(minibatches(n_prompts, settings.num_iterations, settings.num_minibatches, seed, rollout.step))

    def update(
        self, module: L.LightningModule, policy: LanguageModel, experience: Experience, prompts: list[int]
    ) -> UpdateResult:
        """Make one optimiser step on some prompts with their groups, in micro-batches with one common denominator.

        Optimiser and schedule are the module's, under Lightning's manual optimisation. `experience` is that of the
        whole rollout, whose tokens the denominator may count.

        Raises:
            TrainingError: loss or gradient is not finite; the update is not made.
        """
        optimizer = module.optimizers()
        zero_grad = optimizer.zero_grad  # type: ignore[union-attr]

        def shrink(n_prompts: int) -> None:
            self.settings = replace(self.settings, prompts_per_micro_batch=n_prompts)
            zero_grad()

        zero_grad()
        with policy.weights.gathered():
            metrics = once_more_in_halves(
                lambda: self.gradient(policy, experience, prompts, module.manual_backward),
                lambda: max(map(len, self.micro_batches(policy, experience, prompts))),
                shrink,
                experience.rollout.step,
            )
        grad_norm = clip_gradients(list(policy.parameters()), self.settings.max_grad_norm)
        n_tokens = share_of_rank(metrics.n_tokens)
        found = reduce_scalars(metrics.compute(n_tokens) | {keys.GRAD_NORM: float(grad_norm)})
        refuse_non_finite(
            module, found, lambda: experience_content(experience.select(prompts)), "the rewards of this step"
        )
        found[keys.LEARNING_RATE] = optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]
        with phase(keys.STEP_TIME_OPTIMIZER):
            optimizer.step()  # type: ignore[union-attr]
        schedule = module.lr_schedulers()
        if schedule is not None:
            schedule.step()  # type: ignore[union-attr, call-arg]
        return UpdateResult(found, float(n_tokens))

    def gradient(
        self,
        policy: LanguageModel,
        experience: Experience,
        prompts: list[int],
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> UpdateMetrics:
        """Add the gradient of the loss on some prompts to that of the policy; arguments are those of `update`."""
        mask = experience.loss_mask[experience.rollout.rows(prompts)]
        denominator = share_of_rank(self.loss.denominator(mask, experience.loss_mask))
        metrics = UpdateMetrics()
        for part in self.micro_batches(policy, experience, prompts):
            batch = experience.select(part)
            with phase(keys.STEP_TIME_FORWARD):
                statistics = policy.completion_statistics(
                    batch.rollout, self.temperature, entropy_gradient=self.loss.needs_entropies
                )
                old_logprobs, sampling_weights = self.old_policy(batch, statistics.logprobs.detach())
                output = self.loss(
                    statistics.logprobs,
                    old_logprobs,
                    batch.advantages,
                    batch.loss_mask,
                    batch.rollout.ref_logprobs,
                    denominator=denominator,
                    sampling_weights=sampling_weights,
                    selected=batch.selected,
                    entropies=statistics.entropies if self.loss.needs_entropies else None,
                )
            with phase(keys.STEP_TIME_BACKWARD):
                backward(output.loss)
            metrics.add(batch, output, statistics)
        return metrics

    def old_policy(self, batch: Experience, logprobs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the log-probabilities before the first update, and importance weights or None; [b, T] each.

        With one update on a rollout its own forward pass, `logprobs`, is that of the policy before it.
        """
        if batch.old_logprobs is not None:
            return batch.old_logprobs, batch.sampling_weights
        correction = self.settings.importance_sampling
        if correction is None:
            return logprobs, None
        log_ratio = torch.where(batch.rollout.completion_mask, logprobs - batch.rollout.old_logprobs, 0.0)
        return logprobs, correction(log_ratio)

    def micro_batches(self, policy: LanguageModel, experience: Experience, prompts: list[int]) -> list[list[int]]:
        """Return the parts of an update that go through the model one by one, as many on every rank."""
        rollout, chosen = experience.rollout, prompts
        if self.settings.skip_zero_advantage_groups:
            has_gradient = experience.groups_with_advantage()
            chosen = [p for p in prompts if bool(has_gradient[p])] or prompts[:1]
        # Under DDP every rank must make the same number of backward passes, or the others wait for ever.
        n_parts = largest_over_ranks(len(self.parts(policy, rollout, chosen)))
        if len(chosen) < n_parts:  # groups of zero advantage fill up: they add nothing to the gradient
            chosen = chosen + [p for p in prompts if p not in chosen][: n_parts - len(chosen)]
        return self.parts(policy, rollout, chosen, n_parts)

    def parts(
        self, model: LanguageModel | SharedReference, rollout: Rollout, prompts: list[int], at_least: int = 1
    ) -> list[list[int]]:
        """Split prompts into parts within the limits of a forward pass."""
        limits = self.settings.prompts_per_micro_batch, self.settings.tokens_per_micro_batch
        return micro_batches(rollout, prompts, *limits, at_least=at_least, shares_prefix=model.runs_prompts_once)

    def logprobs(
        self, model: LanguageModel | SharedReference, rollout: Rollout, temperature: float | None = None
    ) -> Tensor:
        """Return the log-probabilities that `statistics` gives."""
        return self.statistics(model, rollout, temperature).logprobs

    @torch.no_grad()
    def statistics(
        self, model: LanguageModel | SharedReference, rollout: Rollout, temperature: float | None = None
    ) -> TokenStatistics:
        """Return log-probabilities and entropies of the completions under a model, [B, T] each, 0 where masked.

        They are at the sampler's temperature where none is given.
        """
        temperature = self.temperature if temperature is None else temperature
        found = TokenStatistics(*(torch.zeros_like(rollout.old_logprobs) for _ in TokenStatistics._fields))
        parts = self.parts(model, rollout, list(range(len(rollout.prompts))))
        parts += parts[-1:] * (largest_together(model.weights, len(parts)) - len(parts))  # passes for others' sake
        with model.weights.gathered():
            for part in parts:
                some = rollout.select(part)
                for whole, values in zip(found, model.completion_statistics(some, temperature), strict=True):
                    whole[rollout.rows(part), : values.shape[1]] = torch.where(some.completion_mask, values, 0.0)
        return found
