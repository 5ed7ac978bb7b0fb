"""Estimates of KL(policy || reference) at one sampled token.

They are those of J. Schulman, "Approximating KL divergence" (2020). As a *measurement* k1 and k3 are unbiased, and k2
is biased. As a *penalty* only the gradient matters. Where the policy itself sampled the token (one update per rollout),
its expectation, given the tokens before, is

    estimator | expected gradient of the penalty
    ----------|--------------------------------------------------------
    k1        | 0
    k2        | the gradient of KL(policy || reference), exactly
    k3        | the gradient of KL(reference || policy), exactly: the other direction
    k3+       | that of k2, with the value of k3

(arXiv 2510.01555, 2512.21852.) Near the reference the gradients of k2 and k3 differ only in second order. No estimator
sees what a token does to the divergence of the tokens after it, as the adjustment `KLInReward` does, and none is
re-weighted for tokens that an older policy sampled (further updates on one rollout). At a token to which the policy
gives 0.5 and the reference 0.25, in nats:

>>> import torch
>>> logprobs, ref_logprobs = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
>>> [round(estimator(logprobs, ref_logprobs).item(), 4) for estimator in (K1(), K2(), K3(), K3Plus())]
[0.6931, 0.2402, 0.1931, 0.1931]

These are log 2, (log 2)^2 / 2 and, twice, 0.5 + log 2 - 1.
"""

from abc import ABC, abstractmethod

from torch import Tensor

MAX_LOG_RATIO = 80.0
"""Largest log ratio that is exponentiated: larger ones count as this and carry no gradient. float32 ends at exp(88.7).

A ratio of exp(80) = 5.5e34 means a run that has long failed; the bound only keeps inf - inf and inf * 0 out of it.
"""


class KLEstimator(ABC):
    """Log-probabilities of the sampled tokens -> an estimate of the divergence at each, with gradient."""

    @abstractmethod
    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """Return the estimate in nats for log-probabilities of any one shape, in that shape."""


class K1(KLEstimator):
    """lp - ref: unbiased, of either sign and of high variance.

    As a penalty it measures but does not pull, so `beta` only adds noise. Two things break the expectation of zero and
    let it act: further updates on one rollout, and dividing by the length of the completion.
    """

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        return logprobs - ref_logprobs


class K2(KLEstimator):
    """(lp - ref)^2 / 2: biased in value; as a penalty it has the gradient of KL(policy || reference)."""

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        return (logprobs - ref_logprobs).square() / 2


class K3(KLEstimator):
    """exp(ref - lp) - (ref - lp) - 1: unbiased and never negative; the penalty of GRPO and of TRL.

    As a penalty it raises the policy where the reference has mass, more than it lowers it on tokens that are unlikely
    under the reference.
    """

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        return k3_divergence(logprobs, ref_logprobs)


class K3Plus(KLEstimator):
    """The value of k3 with the gradient of k2: verl's `k3+`.

    The loss then shows an unbiased estimate, while the penalty pulls as KL(policy || reference) does.
    """

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        k2 = (logprobs - ref_logprobs).square() / 2
        return k3_divergence(logprobs, ref_logprobs).detach() + (k2 - k2.detach())


def k3_divergence(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return the estimate k3 in nats, in the shape of the arguments; the metric `kl` is its mean."""
    difference = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    # expm1 keeps the digits that exp(x) - 1 loses where the policies hardly differ.
    return difference.expm1() - difference
