"""Estimates of KL(policy || reference) at one sampled token.

They are those of J. Schulman, "Approximating KL divergence" (2020). As a *measurement* k1 and k3 are unbiased and k2 is
not. As a *penalty*, what counts is the gradient. Let the token be sampled from the policy itself (one update per
rollout); then, given what precedes it, in expectation

    estimator | gradient of the penalty is that of
    ----------|--------------------------------------------------------
    k1        | nothing: it is 0
    k2        | KL(policy || reference), exactly
    k3        | KL(reference || policy), exactly: the other direction

Near the reference the last two pull alike: their gradients differ only in second order. No estimator sees what a token
does to the divergence of the tokens after it, and none is re-weighted for tokens that an older policy sampled (further
updates on one rollout).
"""

from abc import ABC, abstractmethod

from torch import Tensor

MAX_LOG_RATIO = 80.0
"""Where a log ratio is exponentiated, larger ones count as this and carry no gradient: float32 ends at exp(88.7).

A ratio of exp(80) = 5.5e34 is a run that has long failed; the bound only keeps it from becoming inf - inf or inf * 0.
"""


class KLEstimator(ABC):
    """Log-probabilities of the sampled tokens -> an estimate of the divergence at each, with gradient."""

    @abstractmethod
    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """The policy's and the reference's log-probabilities, of any one shape -> that shape, nats."""


class K1(KLEstimator):
    """lp - ref: unbiased, of either sign and of high variance.

    As a penalty it measures but does not pull: its gradient, that of lp, has expectation zero under the policy that
    sampled, so `beta` adds noise and nothing else. It acts only through what breaks that expectation: further updates
    on one rollout, or dividing by the length of the completion.
    """

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """See `KLEstimator`."""
        return logprobs - ref_logprobs


class K2(KLEstimator):
    """(lp - ref)^2 / 2: biased in value; as a penalty it has the gradient of KL(policy || reference)."""

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """See `KLEstimator`."""
        return (logprobs - ref_logprobs).square() / 2


class K3(KLEstimator):
    """exp(ref - lp) - (ref - lp) - 1: unbiased and never negative; the penalty of GRPO and of TRL.

    As a penalty it has the gradient of KL(reference || policy), which pushes the policy up wherever the reference
    puts mass, more than it pulls it off tokens that the reference finds unlikely.
    """

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """See `KLEstimator`."""
        return k3_divergence(logprobs, ref_logprobs)


def k3_divergence(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The estimator k3, which is also what the metric `kl` is; see `K3`."""
    difference = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    # expm1 keeps the digits that exp(x) - 1 loses where the policies hardly differ.
    return difference.expm1() - difference
