"""What all policy losses share: the contract, the checks, the KL penalty and the denominator."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses.kl import K3, MAX_LOG_RATIO, KLEstimator, k3_divergence
from grpovi_lightning.ops import masked_mean, masked_sum


class LossOutput(NamedTuple):
    """The loss to differentiate, and detached scalar tensors to log.

    Metrics are means over the tokens of this call unless a loss says otherwise, and 0 where there are no tokens. To
    join several calls, weight each by its number of tokens.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class LossInputs(NamedTuple):
    """What the loss of each token is computed from, in float32 or better; 0 where masked.

    Attributes:
        logprobs: [B, T] of the current policy, with gradient.
        old_logprobs: [B, T] of the policy that sampled.
        log_ratio: [B, T] logprobs - old_logprobs, at most `MAX_LOG_RATIO`, with gradient.
        advantages: [B, 1].
        mask: [B, T] bool.
        ref_logprobs: [B, T] of the reference policy, or None.
        entropies: [B, T] of the current policy's distributions, nats, with gradient; None unless `needs_entropies`.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    log_ratio: Tensor
    advantages: Tensor
    mask: Tensor
    ref_logprobs: Tensor | None
    entropies: Tensor | None


class Surrogate(NamedTuple):
    """The loss of each token [B, T] before any penalty, and scalars to log about it."""

    token_loss: Tensor
    metrics: dict[str, Tensor]


class PolicyLoss(ABC):
    """Advantages and log-probabilities -> loss.

        total( selected * sampling_weight * surrogate + penalty ) / denominator,   penalty = beta * kl

    A new loss is a file with a subclass that defines the `surrogate` of a token. Unless it is a mean over tokens, it
    also defines how token losses are added up (`total`) and what the sum is divided by (`denominator`). What it needs
    is in `LossInputs`; entropies are computed with gradient for losses that say `needs_entropies`, and for no others.

    The denominator is computed apart from the sum, so that micro-batches and ranks can share that of the whole batch.
    It is therefore a plain count, which can be added over ranks and may be 0.
    """

    def __init__(self, beta: float = 0.0, kl: KLEstimator | None = None) -> None:
        """Set the KL penalty.

        Args:
            beta: its coefficient, at least 0; 0 needs no reference model.
            kl: what is penalised; default `K3`. The metric `kl` is the mean of k3 whatever stands here.
        """
        if not 0.0 <= beta < float("inf"):
            raise UserError(f"beta: got {beta}, expected a finite number of at least 0")
        self.beta = beta
        self.kl = kl or K3()

    @property
    def needs_reference(self) -> bool:
        """Whether `ref_logprobs` must be given."""
        return self.beta > 0

    @property
    def needs_entropies(self) -> bool:
        """Whether `entropies` must be given, with gradient."""
        return False

    @property
    def penalties(self) -> list[str]:
        """The settings, with values, that give tokens a gradient whatever their advantage."""
        return [f"beta {self.beta:g}"] if self.beta > 0 else []

    @abstractmethod
    def surrogate(self, inputs: LossInputs) -> Surrogate:
        """Return the loss of each token, before any penalty."""

    def penalty(self, inputs: LossInputs) -> Tensor | None:
        """Return what is added to the loss of each token, [B, T]; None: nothing. Here beta * kl."""
        if inputs.ref_logprobs is None or self.beta == 0:
            return None
        return self.beta * self.kl(inputs.logprobs, inputs.ref_logprobs)

    def total(self, token_loss: Tensor, mask: Tensor) -> Tensor:
        """Add up the token losses [B, T] to a scalar, the numerator of the loss; here where `mask` is true."""
        return masked_sum(token_loss, mask)

    def denominator(self, completion_mask: Tensor, rollout_mask: Tensor | None = None) -> Tensor:
        """Return what the total is divided by; here the rollout's mean number of tokens in as many sequences.

        Args:
            completion_mask: [B, T] bool, the sequences of one optimiser step.
            rollout_mask: [B', T'] bool, all sequences that were sampled together with them. Where several optimiser
                steps share a rollout, each counts its share of the rollout's tokens, so that a token weighs the same
                in all of them. None: there are no others.

        Returns:
            a float32 scalar; 0 where there is nothing to count.
        """
        if rollout_mask is None or len(rollout_mask) == 0:
            return completion_mask.sum().float()
        return rollout_mask.sum().float() * (len(completion_mask) / len(rollout_mask))

    def __call__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        completion_mask: Tensor,
        ref_logprobs: Tensor | None = None,
        denominator: Tensor | float | None = None,
        sampling_weights: Tensor | None = None,
        selected: Tensor | None = None,
        entropies: Tensor | None = None,
    ) -> LossOutput:
        """Compute the loss of some of the sequences of a batch, in float32 or better.

        Only `logprobs` gets a gradient, and `entropies` where they are needed. Values at masked positions are never
        read.

        Args:
            logprobs: [B, T] of the current policy, with gradient.
            old_logprobs: [B, T] of the policy that sampled.
            advantages: [B].
            completion_mask: [B, T] bool.
            ref_logprobs: [B, T] of the reference policy; needed when beta > 0.
            denominator: a scalar that divides the total; pass the whole batch's when these are only a part of it, so
                that splitting does not change the gradient. None: that of these sequences.
            sampling_weights: [B, T] factors of the surrogate (not of the penalty) that correct the sampling; None: 1.
            selected: [B, T] bool, the tokens whose surrogate counts; the denominator counts the others, too. None: all.
            entropies: [B, T] of the current policy, nats, with gradient; needed when `needs_entropies`.

        Raises:
            ValueError: shapes differ, or something that is needed is not there.
        """
        self._check_needed(ref_logprobs, entropies)
        _check_shapes(
            logprobs,
            advantages,
            old_logprobs=old_logprobs,
            completion_mask=completion_mask,
            ref_logprobs=ref_logprobs,
            sampling_weights=sampling_weights,
            selected=selected,
            entropies=entropies,
        )
        mask = completion_mask.bool()
        inputs = _filled(logprobs, old_logprobs, advantages, mask, ref_logprobs, entropies)
        token_loss, metrics = self.surrogate(inputs)
        if sampling_weights is not None:
            token_loss = token_loss * torch.where(mask, sampling_weights.detach().to(token_loss.dtype), 0.0)
        if selected is not None:
            token_loss = torch.where(selected, token_loss, 0.0)
            metrics = metrics | {keys.FRAC_TOKENS_SELECTED: masked_mean(selected.to(token_loss.dtype), mask)}
        penalty = self.penalty(inputs)
        if penalty is not None:
            token_loss = token_loss + penalty
        if inputs.ref_logprobs is not None:
            divergence = k3_divergence(inputs.logprobs.detach(), inputs.ref_logprobs)
            metrics = metrics | {keys.KL: masked_mean(divergence, mask)}
        return LossOutput(self._mean(token_loss, mask, denominator), metrics)

    def _check_needed(self, ref_logprobs: Tensor | None, entropies: Tensor | None) -> None:
        needed = ("ref_logprobs", ref_logprobs, self.needs_reference), ("entropies", entropies, self.needs_entropies)
        for name, given, is_needed in needed:
            if is_needed and given is None:
                raise ValueError(f"{name}: got None, expected [B, T] because of {' and '.join(self.penalties)}")

    def _mean(self, token_loss: Tensor, mask: Tensor, denominator: Tensor | float | None) -> Tensor:
        """Divide the total by the given denominator, or by that of these sequences."""
        count = torch.as_tensor(self.denominator(mask) if denominator is None else denominator)
        if count.ndim > 0:
            raise ValueError(f"denominator: got shape {list(count.shape)}, expected a scalar")
        total = self.total(token_loss, mask)
        count = count.to(total)
        # Where the count is 0 the total is 0, too: 0 / 1 has a gradient of 0, and 0 / 0 would be NaN.
        return total / torch.where(count == 0, 1.0, count)


def _filled(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logprobs: Tensor | None,
    entropies: Tensor | None,
) -> LossInputs:
    """Return the inputs in float32 or better, 0 where masked, and without gradient where they are constants."""
    dtype = torch.promote_types(logprobs.dtype, torch.float32)

    def filled(values: Tensor) -> Tensor:
        return torch.where(mask, values.to(dtype), 0.0)

    logprobs, old_logprobs = filled(logprobs), filled(old_logprobs.detach())
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        log_ratio=(logprobs - old_logprobs).clamp(max=MAX_LOG_RATIO),
        advantages=advantages.detach().to(dtype)[:, None],
        mask=mask,
        ref_logprobs=None if ref_logprobs is None else filled(ref_logprobs.detach()),
        entropies=None if entropies is None else filled(entropies),
    )


def _check_shapes(logprobs: Tensor, advantages: Tensor, **per_token: Tensor | None) -> None:
    """Refuse shapes that differ: broadcasting a [B, 1] where [B, T] is meant would hide the mistake."""
    if logprobs.ndim != 2:
        raise ValueError(f"logprobs: got shape {list(logprobs.shape)}, expected [B, T]")
    for name, tensor in per_token.items():
        if tensor is not None and tensor.shape != logprobs.shape:
            raise ValueError(
                f"{name}: got shape {list(tensor.shape)}, expected that of logprobs, {list(logprobs.shape)}"
            )
    if advantages.shape != logprobs.shape[:1]:
        raise ValueError(
            f"advantages: got shape {list(advantages.shape)}, expected one a sequence, [{len(logprobs)}], "
            f"for logprobs of shape {list(logprobs.shape)}"
        )
