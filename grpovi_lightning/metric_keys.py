"""Names of every scalar that a run logs: the contract between training and `analysis`.

Standard library only, so that `analysis` can import it on a machine without torch. Where TRL has the
quantity, the name is TRL's; the one departure is documented at `REWARD_STD`. Training scalars stand
under their plain name, held-out scalars under `eval/<name>`, those of the test table under `test/<name>`. Where
held-out sets have names, those of each stand under `eval/<set>/<name>`, and those of the first under `eval/<name>` too.

The x-axis of both is the number of training steps done before the measurement: the value at step 0 is the
initial policy's, whether it was measured on training or on held-out prompts. One step of the GRPO family is
one rollout with its `num_iterations` updates.

Beside each name stands how the numbers of several processes become one where each rank has its own: the mean, the
smallest or the largest. Scalars that are computed from the rows of all ranks are equal on every rank.
"""

from typing import Literal

OverRanks = Literal["mean", "min", "max"]

_OVER_RANKS: dict[str, OverRanks] = {}


def scalar(name: str, over_ranks: OverRanks) -> str:
    """Declare a scalar and how it is reduced over ranks; return its name."""
    _OVER_RANKS[name] = over_ranks
    return name


def over_ranks(name: str) -> OverRanks:
    """Return how a scalar is reduced over ranks.

    A name that is not declared here is one that a loss brings along: a mean over tokens, so a mean over ranks.

    >>> over_ranks(GRAD_NORM), over_ranks(PEAK_MEMORY_GB)
    ('mean', 'max')
    """
    return _OVER_RANKS.get(name, "mean")


EVAL_PREFIX = "eval/"
TEST_PREFIX = "test/"
_PASS_AT = "pass_at_"
GREEDY_PREFIX = "greedy/"
"""Follows `eval/` or `test/`, and the name of the held-out set."""

# Rewards. `REWARD` is the weighted total that the policy is trained on, before any adjustment. Every statistic of
# rewards is over the completions that have one; the mean of none is NaN.
REWARD = scalar("reward", "mean")
REWARD_STD = scalar("reward_std", "mean")
"""Mean over groups of the within-group standard deviation (Bessel), whatever `scale_rewards` is. Groups with fewer
than two scored completions are left out; 0 where no others are."""
REWARD_BATCH_STD = scalar("reward_batch_std", "mean")
"""Standard deviation over all scored completions of the batch; 0 of fewer than two."""
FRAC_REWARD_ZERO_STD = scalar("frac_reward_zero_std", "mean")
"""Share of groups whose scored rewards are all equal, or fewer than two; they carry no gradient."""
FRAC_GROUPS_ALL_HIGH = scalar("frac_groups_all_high", "mean")
"""Share of groups of two or more equal rewards above the middle of the range, the adjustment's or the counterfactual's.
Just in the middle the batch's smallest and largest reward tell; where these are equal, such groups are neither."""
FRAC_GROUPS_ALL_LOW = scalar("frac_groups_all_low", "mean")
"""Share of such groups below the middle."""
FRAC_UNSCORABLE = scalar("frac_unscorable", "mean")
"""Share of completions whose reward is None or NaN. They are not trained on."""
FRAC_GROUPS_RESAMPLED = scalar("frac_groups_resampled", "mean")
"""Share of groups of other prompts than the step began with; statistics of training rewards are then of a selection."""
FRAC_GROUPS_LEFT_OUT = scalar("frac_groups_left_out", "mean")
"""Share of groups that vary too little to be learned from; they count in statistics of training rewards and lengths."""

# Policy.
KL = scalar("kl", "mean")
"""Mean over completion tokens of the k3 estimate of KL(policy || reference), nats."""
FRAC_TOKENS_SELECTED = scalar("frac_tokens_selected", "mean")
"""Share of completion tokens whose policy loss counts; logged where `token_selection` is set."""
ENTROPY = scalar("entropy", "mean")
"""Mean over completion tokens of the entropy of the temperature-scaled policy, nats."""
LOSS = scalar("loss", "mean")
GRAD_NORM = scalar("grad_norm", "mean")
LEARNING_RATE = scalar("learning_rate", "mean")
CLIP_RATIO_LOW_MEAN = scalar("clip_ratio/low_mean", "mean")
CLIP_RATIO_LOW_MIN = scalar("clip_ratio/low_min", "min")
"""The smallest of the shares clipped below that the updates of a step had; `high_max` likewise."""
CLIP_RATIO_HIGH_MEAN = scalar("clip_ratio/high_mean", "mean")
CLIP_RATIO_HIGH_MAX = scalar("clip_ratio/high_max", "max")
CLIP_RATIO_REGION_MEAN = scalar("clip_ratio/region_mean", "mean")
CISPO_CLIP_RATIO = scalar("cispo_clip_ratio", "mean")
"""Share of completion tokens with a positive advantage and a ratio above the cap."""
COMPLETIONS_MEAN_LENGTH = scalar("completions/mean_length", "mean")
COMPLETIONS_MIN_LENGTH = scalar("completions/min_length", "min")
COMPLETIONS_MAX_LENGTH = scalar("completions/max_length", "max")
COMPLETIONS_CLIPPED_RATIO = scalar("completions/clipped_ratio", "mean")
"""Share of completions cut off at `max_completion_length` without an end token."""
COMPLETIONS_MEAN_TERMINATED_LENGTH = scalar("completions/mean_terminated_length", "mean")
"""Mean length, in tokens, of the completions that ended with an end token; 0 where none did."""
COMPLETIONS_MIN_TERMINATED_LENGTH = scalar("completions/min_terminated_length", "min")
"""The shortest of them; 0 where none ended."""
COMPLETIONS_MAX_TERMINATED_LENGTH = scalar("completions/max_terminated_length", "max")
"""The longest of them; 0 where none ended."""
LENGTH_REWARD_CORRELATION = scalar("completions/length_reward_correlation", "mean")
"""Spearman's rank correlation of reward and length over the scored completions; 0 where either never differs."""
ADVANTAGE_STD = scalar("advantages/std", "mean")
ADVANTAGE_ABS_MEAN = scalar("advantages/abs_mean", "mean")
ADVANTAGE_ABS_MAX = scalar("advantages/abs_max", "max")

# How far the sampler's log-probabilities are from the trainer's, for the same weights: tokens of the first update.
SAMPLING_PREFIX = "sampling/"
SAMPLING_LOGP_DIFFERENCE_MEAN = scalar("sampling/sampling_logp_difference/mean", "mean")
"""Mean absolute difference of the log-probabilities, nats."""
SAMPLING_LOGP_DIFFERENCE_MAX = scalar("sampling/sampling_logp_difference/max", "max")
SAMPLING_RATIO_MIN = scalar("sampling/importance_sampling_ratio/min", "min")
"""Smallest pi_trainer / pi_sampler of a token, before any truncation."""
SAMPLING_RATIO_MEAN = scalar("sampling/importance_sampling_ratio/mean", "mean")
SAMPLING_RATIO_MAX = scalar("sampling/importance_sampling_ratio/max", "max")

# Cost, cumulative over the run.
NUM_TOKENS = scalar("num_tokens", "mean")
"""Completion tokens sampled for training so far. Held-out completions do not count."""
TRAIN_SECONDS = scalar("train_seconds", "mean")
"""Wall-clock seconds spent in training steps so far. Held-out evaluation does not count; waiting for answers about
completions, where a reward model learns from them, does."""

# Time of one step, seconds. The phases do not overlap; what they leave of `step_time` is bookkeeping.
STEP_TIME = scalar("step_time", "mean")
STEP_TIME_PREFILL = scalar("step_time/prefill", "mean")
"""The prompts' pass through the policy, once a group; part of `decode` where a model runs each completion's prompt."""
STEP_TIME_DECODE = scalar("step_time/decode", "mean")
STEP_TIME_REFERENCE = scalar("step_time/reference", "mean")
STEP_TIME_REWARD = scalar("step_time/reward", "mean")
STEP_TIME_ADJUSTMENT = scalar("step_time/adjustment", "mean")
STEP_TIME_FORWARD = scalar("step_time/forward", "mean")
STEP_TIME_BACKWARD = scalar("step_time/backward", "mean")
STEP_TIME_OPTIMIZER = scalar("step_time/optimizer", "mean")
STEP_PHASES = tuple(name for name in _OVER_RANKS if name.startswith(f"{STEP_TIME}/"))

# What a training step got out of the machine. Like the times, these differ between two runs of one seed. With several
# ranks, tokens count over all of them, the shares and the utilisation are means, and the memory is that of the rank
# that took the most.
THROUGHPUT_PREFIX = "throughput/"
COMPLETION_TOKENS_PER_SECOND = scalar("throughput/completion_tokens_per_second", "mean")
"""Completion tokens sampled for a step, those of groups that resampling threw away included, by `step_time`."""
PEAK_MEMORY_GB = scalar("throughput/peak_memory_gb", "max")
"""Most memory so far, 10^9 bytes: on a GPU that of tensors on the device, else the resident set of the process."""
MFU = scalar("throughput/mfu", "mean")
"""Model FLOP utilisation: FLOPs of the policy's matrices by what the GPU can do in `step_time`, if Lightning knows."""
STEP_SHARE_REST = scalar("throughput/frac_rest", "mean")
"""Share of `step_time` that no phase took."""

# The adjustment. Every GRPO-family run logs all of these: what its adjustment did, else what a variance increase would
# have done. One without weights and range of its own is described by those of `counterfactual`. Means over groups, if
# nothing else is said; only completions with a reward count, and groups that have one. NaN where no group has.
ADJUSTMENT_VARIANCE_BEFORE = scalar("adjustment/variance_before", "mean")
"""Reward variance under the adjustment's weights."""
ADJUSTMENT_VARIANCE_AFTER = scalar("adjustment/variance_after", "mean")
ADJUSTMENT_UNIFORM_VARIANCE_BEFORE = scalar("adjustment/uniform_variance_before", "mean")
"""Reward variance with all completions of a group weighing the same."""
ADJUSTMENT_UNIFORM_VARIANCE_AFTER = scalar("adjustment/uniform_variance_after", "mean")
ADJUSTMENT_FRAC_CHANGED = scalar("adjustment/frac_groups_changed", "mean")
"""Share of groups in which a reward moves by more than a millionth of the range."""
ADJUSTMENT_FRAC_ZERO_VARIANCE = scalar("adjustment/frac_groups_zero_variance", "mean")
"""Share of groups without weighted variance: equal rewards, or all the weight on one completion."""
ADJUSTMENT_EFFECTIVE_WEIGHTS = scalar("adjustment/effective_weights", "mean")
"""exp(entropy of the weights): 1 when one completion takes all, G when uniform."""
ADJUSTMENT_RANGE_LOWER = scalar("adjustment/range_lower", "mean")
ADJUSTMENT_RANGE_UPPER = scalar("adjustment/range_upper", "mean")
ADJUSTMENT_ADVANTAGE_COSINE = scalar("adjustment/advantage_cosine", "mean")
"""Cosine, over the batch, between advantages from adjusted and raw rewards; this and the next NaN where undefined."""
ADJUSTMENT_SIGN_FLIPS = scalar("adjustment/sign_flips", "mean")
"""Share of completions whose advantage changes sign through the adjustment."""
ADJUSTMENT_RESIDUAL_MEAN = scalar("adjustment/residual_mean", "max")
"""Largest violation of the constraint on the weighted mean in any group, as a share of the range."""
ADJUSTMENT_RESIDUAL_BOUNDS = scalar("adjustment/residual_bounds", "max")
"""Largest step over a bound, as a share of the range."""
ADJUSTMENT_RESIDUAL_ORDER = scalar("adjustment/residual_order", "max")
"""Largest violation of the order of the rewards, as a share of the range."""

# A reward model that learns while the policy does: one value for each round of fresh comparisons, at its step. The
# first two also stand under `eval/`, as axes for held-out rewards.
ONLINE_PREFIX = "online/"
ONLINE_LABELS = scalar("online/labels", "mean")
"""Labels learned from so far in this run; those behind the reward model that the run began with do not count."""
ONLINE_UNANSWERED = scalar("online/unanswered", "mean")
"""Questions asked so far that have no answer yet."""
ONLINE_PAIR_ACCURACY = scalar("online/pair_accuracy", "mean")
"""Share of the round's comparisons that the model, before it learned from them, ordered as they were labelled."""
ONLINE_CROSS_ENTROPY = scalar("online/cross_entropy", "mean")
"""Mean -log P(label) of the same, nats; log 2 is guessing."""
ONLINE_UNCERTAINTY = scalar("online/uncertainty", "mean")
"""Mean length of the feature differences in the norm of the inverse Hessian, before learning from them; where the
strategy that chose them reads it."""
ONLINE_REGRET = scalar("online/regret", "mean")
"""Mean gold reward of the best completion of the group minus the mean of the two compared; where the gold reward is
known."""
ONLINE_KAPPA = scalar("online/kappa", "mean")
"""Largest 1 / (p (1 - p)) of any comparison so far, the constant that the theory's bounds depend on."""
ONLINE_UPDATE_SECONDS = scalar("online/update_seconds", "mean")
"""Wall-clock seconds that the estimator took to learn from the round."""
ONLINE_STATE_BYTES = scalar("online/state_bytes", "mean")
"""Bytes that the estimator keeps for the next round."""

# Supervised fine-tuning and reward modelling.
PAIR_ACCURACY = scalar("pair_accuracy", "mean")
REWARD_MARGIN = scalar("reward_margin", "mean")
CALIBRATION_ERROR = scalar("calibration_error", "mean")
"""Expected calibration error of the predicted preferences: over ten bins of the probability of the completion that the
model prefers, the mean distance between that probability and the share of pairs in which the model is right."""
LENGTH_CORRELATION = scalar("length_correlation", "mean")
"""Pearson correlation of the scores of completions with their lengths in tokens; 0 where either never differs."""


def step_share(phase: str) -> str:
    """Return the key of a phase's share of `step_time`; `phase` is one of `STEP_PHASES`."""
    return f"{THROUGHPUT_PREFIX}frac_{phase.removeprefix(STEP_TIME + '/')}"


def rewards(name: str) -> str:
    """Return what the keys of reward component `name` begin with."""
    return f"rewards/{name}"


def rewards_mean(name: str) -> str:
    """Return TRL's key of the mean of reward component `name`: over completions that it scored, NaN where none."""
    return f"{rewards(name)}/mean"


def rewards_std(name: str) -> str:
    """Return TRL's key of the standard deviation of reward component `name`; NaN of fewer than two scores."""
    return f"{rewards(name)}/std"


def rewards_variance_share(name: str) -> str:
    """Return the key of the share of trained component `name` in the variance of the reward within groups.

    Its weight times its covariance with the reward, by the variance of the reward, so that all shares sum to 1; NaN
    where no group has variance. Logged where two or more are trained on.
    """
    return f"{rewards(name)}/variance_share"


def rewards_truncated(name: str) -> str:
    """Return the key of the number of sequences of a step whose prompts were cut for reward model `name`.

    They are counted over all ranks; those of groups that resampling threw away count, too. Logged where the reward
    model has `truncate` set.
    """
    return f"rewards/{name}/truncated"


def pair_accuracy_of(subset: str) -> str:
    """Return the key of the accuracy on a named subset of the pairs."""
    return f"{PAIR_ACCURACY}/{subset}"


def pair_agreement(name: str) -> str:
    """Return the key of the share of pairs within a group that reward and observed component `name` order alike.

    Pairs that the component rates equal do not count; a pair that only the reward rates equal counts half. NaN where
    no pair counts.
    """
    return f"{rewards(name)}/pair_agreement"


def held_out(key: str) -> str:
    """Return the key under which `key` is logged when measured on held-out prompts."""
    return EVAL_PREFIX + key


def pass_at(name: str, k: int) -> str:
    """Return the key of the mean over held-out prompts of pass@k, judged by `name`; in [0, 1], equal on all ranks.

    `name` is that of a metric of the evaluation, or what the keys of a reward component begin with. Prompts with fewer
    than k completions that it scored do not count; NaN where none counts.
    """
    return f"{_PASS_AT}{k}/{name}"


def greedy(key: str) -> str:
    """Return the key of `key` as it is of the most probable completion instead of sampled ones."""
    return GREEDY_PREFIX + key


def of_set(name: str, key: str) -> str:
    """Return the key of `key` as it is of the held-out set `name`; "" is the set without a name."""
    return f"{name}/{key}" if name else key


def is_taken(name: str) -> bool:
    """Return whether held-out keys begin with this word, so that neither a set nor a metric can have it as name.

    >>> is_taken("kl"), is_taken("completions"), is_taken("pass_at_8"), is_taken("exact")
    (True, True, True, False)
    """
    return name.startswith(_PASS_AT) or name in {key.split("/")[0] for key in [*_OVER_RANKS, rewards(""), greedy("")]}


def set_in(tag: str) -> str:
    """Return the held-out set that a tag names; "" where it names none.

    >>> set_in("eval/hard/reward"), set_in("eval/rewards/gold/mean"), set_in("eval/exact"), set_in("reward")
    ('hard', '', '', '')
    """
    word, separator, _ = tag.removeprefix(EVAL_PREFIX).partition("/")
    return word if separator and tag.startswith(EVAL_PREFIX) and not is_taken(word) else ""
