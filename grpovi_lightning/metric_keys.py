"""Names of every scalar that a run logs: the contract between training and `analysis`.

Standard library only, so that `analysis` can import it on a machine without torch. Where TRL has the
quantity, the name is TRL's; the one departure is documented at `REWARD_STD`. Training scalars stand
under their plain name, held-out scalars under `eval/<name>`, those of the test table under `test/<name>`.

The x-axis of both is the number of training steps done before the measurement: the value at step 0 is the
initial policy's, whether it was measured on training or on held-out prompts. One step of the GRPO family is
one rollout with its `num_iterations` updates.
"""

EVAL_PREFIX = "eval/"
TEST_PREFIX = "test/"

# Rewards. `REWARD` is the weighted total that the policy is trained on, before any adjustment. Every statistic of
# rewards is over the completions that have one; the mean of none is NaN.
REWARD = "reward"
REWARD_STD = "reward_std"
"""Mean over groups of the within-group standard deviation (Bessel), whatever `scale_rewards` is. Groups with fewer
than two scored completions are left out; 0 where no others are."""
REWARD_BATCH_STD = "reward_batch_std"
"""Standard deviation over all scored completions of the batch; 0 of fewer than two."""
FRAC_REWARD_ZERO_STD = "frac_reward_zero_std"
"""Share of groups whose scored rewards are all equal, or fewer than two; they carry no gradient."""
FRAC_UNSCORABLE = "frac_unscorable"
"""Share of completions without a reward: a function returned None or NaN for them. They are not trained on."""

FRAC_GROUPS_RESAMPLED = "frac_groups_resampled"
"""Share of groups that took the place of groups without reward variance; logged where `resampling` is set.

All statistics of training rewards are then those of the groups that are trained on, a selection; held-out ones are not.
"""

# Policy.
KL = "kl"
"""Mean over completion tokens of the k3 estimate of KL(policy || reference), nats."""
ENTROPY = "entropy"
"""Mean over completion tokens of the entropy of the temperature-scaled policy, nats."""
LOSS = "loss"
GRAD_NORM = "grad_norm"
LEARNING_RATE = "learning_rate"
CLIP_RATIO_LOW_MEAN = "clip_ratio/low_mean"
CLIP_RATIO_LOW_MIN = "clip_ratio/low_min"
"""The smallest of the shares clipped below that the updates of a step had; `high_max` likewise."""
CLIP_RATIO_HIGH_MEAN = "clip_ratio/high_mean"
CLIP_RATIO_HIGH_MAX = "clip_ratio/high_max"
CLIP_RATIO_REGION_MEAN = "clip_ratio/region_mean"
CISPO_CLIP_RATIO = "cispo_clip_ratio"
"""Share of completion tokens with a positive advantage and a ratio above the cap."""
COMPLETIONS_MEAN_LENGTH = "completions/mean_length"
COMPLETIONS_MIN_LENGTH = "completions/min_length"
COMPLETIONS_MAX_LENGTH = "completions/max_length"
COMPLETIONS_CLIPPED_RATIO = "completions/clipped_ratio"
"""Share of completions cut off at `max_completion_length` without an end token."""
COMPLETIONS_MEAN_TERMINATED_LENGTH = "completions/mean_terminated_length"
"""Mean length, in tokens, of the completions that ended with an end token; 0 where none did."""
COMPLETIONS_MIN_TERMINATED_LENGTH = "completions/min_terminated_length"
"""The shortest of them; 0 where none ended."""
COMPLETIONS_MAX_TERMINATED_LENGTH = "completions/max_terminated_length"
"""The longest of them; 0 where none ended."""
ADVANTAGE_STD = "advantages/std"
ADVANTAGE_ABS_MEAN = "advantages/abs_mean"

# How far the sampler's log-probabilities are from the trainer's, for the same weights: tokens of the first update.
SAMPLING_PREFIX = "sampling/"
SAMPLING_LOGP_DIFFERENCE_MEAN = "sampling/sampling_logp_difference/mean"
"""Mean absolute difference of the log-probabilities, nats."""
SAMPLING_LOGP_DIFFERENCE_MAX = "sampling/sampling_logp_difference/max"
SAMPLING_RATIO_MIN = "sampling/importance_sampling_ratio/min"
"""Smallest pi_trainer / pi_sampler of a token, before any truncation."""
SAMPLING_RATIO_MEAN = "sampling/importance_sampling_ratio/mean"
SAMPLING_RATIO_MAX = "sampling/importance_sampling_ratio/max"

# Cost, cumulative over the run.
NUM_TOKENS = "num_tokens"
"""Completion tokens sampled for training so far. Held-out completions do not count."""
TRAIN_SECONDS = "train_seconds"
"""Wall-clock seconds spent in training steps so far. Held-out evaluation does not count; waiting for answers about
completions, where a reward model learns from them, does."""

# Time of one step, seconds. The phases do not overlap; what they leave of `step_time` is bookkeeping.
STEP_TIME = "step_time"
STEP_TIME_PREFILL = "step_time/prefill"
"""The prompts' pass through the policy, once a group; part of `decode` where a model runs each completion's prompt."""
STEP_TIME_DECODE = "step_time/decode"
STEP_TIME_REFERENCE = "step_time/reference"
STEP_TIME_REWARD = "step_time/reward"
STEP_TIME_ADJUSTMENT = "step_time/adjustment"
STEP_TIME_FORWARD = "step_time/forward"
STEP_TIME_BACKWARD = "step_time/backward"
STEP_TIME_OPTIMIZER = "step_time/optimizer"
STEP_PHASES = (
    STEP_TIME_PREFILL,
    STEP_TIME_DECODE,
    STEP_TIME_REFERENCE,
    STEP_TIME_REWARD,
    STEP_TIME_ADJUSTMENT,
    STEP_TIME_FORWARD,
    STEP_TIME_BACKWARD,
    STEP_TIME_OPTIMIZER,
)

# What a training step got out of the machine. Like the times, these differ between two runs of one seed. With several
# ranks, tokens count over all of them, the shares and the utilisation are means, and the memory is that of the rank
# that took the most.
THROUGHPUT_PREFIX = "throughput/"
COMPLETION_TOKENS_PER_SECOND = "throughput/completion_tokens_per_second"
"""Completion tokens sampled for a step, those of groups that resampling threw away included, by `step_time`."""
PEAK_MEMORY_GB = "throughput/peak_memory_gb"
"""Most memory so far, 10^9 bytes: on a GPU that of tensors on the device, else the resident set of the process."""
MFU = "throughput/mfu"
"""Model FLOP utilisation: FLOPs that the policy's matrices need for a step, as a share of what the GPU could do in
`step_time`. Logged on GPUs that Lightning has the figure of."""
STEP_SHARE_REST = "throughput/frac_rest"
"""Share of `step_time` that no phase took."""

# The variance increase. Every GRPO-family run logs all of these: what it did where the run applies one, and what it
# would have done to the run's own rollouts where it does not. Means over groups, where nothing else is said; only
# completions with a reward count, and only groups that have one. NaN where no group has.
ADJUSTMENT_VARIANCE_BEFORE = "adjustment/variance_before"
"""Reward variance under the adjustment's weights."""
ADJUSTMENT_VARIANCE_AFTER = "adjustment/variance_after"
ADJUSTMENT_UNIFORM_VARIANCE_BEFORE = "adjustment/uniform_variance_before"
"""Reward variance with all completions of a group weighing the same."""
ADJUSTMENT_UNIFORM_VARIANCE_AFTER = "adjustment/uniform_variance_after"
ADJUSTMENT_FRAC_CHANGED = "adjustment/frac_groups_changed"
"""Share of groups in which a reward moves by more than a millionth of the range."""
ADJUSTMENT_FRAC_ZERO_VARIANCE = "adjustment/frac_groups_zero_variance"
"""Share of groups without weighted variance: equal rewards, or all the weight on one completion."""
ADJUSTMENT_EFFECTIVE_WEIGHTS = "adjustment/effective_weights"
"""exp(entropy of the weights): 1 when one completion takes all, G when uniform."""
ADJUSTMENT_RANGE_LOWER = "adjustment/range_lower"
ADJUSTMENT_RANGE_UPPER = "adjustment/range_upper"
ADJUSTMENT_ADVANTAGE_COSINE = "adjustment/advantage_cosine"
"""Cosine, over the batch, between the advantages from increased and from raw rewards."""
ADJUSTMENT_SIGN_FLIPS = "adjustment/sign_flips"
"""Share of completions whose advantage changes sign through the increase."""
ADJUSTMENT_RESIDUAL_MEAN = "adjustment/residual_mean"
"""Largest violation of the constraint on the weighted mean in any group, as a share of the range."""
ADJUSTMENT_RESIDUAL_BOUNDS = "adjustment/residual_bounds"
"""Largest step over a bound, as a share of the range."""
ADJUSTMENT_RESIDUAL_ORDER = "adjustment/residual_order"
"""Largest violation of the order of the rewards, as a share of the range."""

# A reward model that learns while the policy does: one value for each round of fresh comparisons, at its step. The
# first two also stand under `eval/`, as axes for held-out rewards.
ONLINE_PREFIX = "online/"
ONLINE_LABELS = "online/labels"
"""Labels learned from so far in this run; those behind the reward model that the run began with do not count."""
ONLINE_UNANSWERED = "online/unanswered"
"""Questions asked so far that have no answer yet."""
ONLINE_PAIR_ACCURACY = "online/pair_accuracy"
"""Share of the round's comparisons that the model, before it learned from them, ordered as they were labelled."""
ONLINE_CROSS_ENTROPY = "online/cross_entropy"
"""Mean -log P(label) of the same, nats; log 2 is guessing."""
ONLINE_UNCERTAINTY = "online/uncertainty"
"""Mean length of the feature differences in the norm of the inverse Hessian, before learning from them; where the
strategy that chose them reads it."""
ONLINE_REGRET = "online/regret"
"""Mean gold reward of the best completion of the group minus the mean of the two compared; where the gold reward is
known."""
ONLINE_KAPPA = "online/kappa"
"""Largest 1 / (p (1 - p)) of any comparison so far, the constant that the theory's bounds depend on."""
ONLINE_UPDATE_SECONDS = "online/update_seconds"
"""Wall-clock seconds that the estimator took to learn from the round."""
ONLINE_STATE_BYTES = "online/state_bytes"
"""Bytes that the estimator keeps for the next round."""

# Supervised fine-tuning and reward modelling.
PAIR_ACCURACY = "pair_accuracy"
REWARD_MARGIN = "reward_margin"


def step_share(phase: str) -> str:
    """Share of `step_time` that `phase`, one of `STEP_PHASES`, took: `throughput/frac_<phase>`."""
    return f"{THROUGHPUT_PREFIX}frac_{phase.removeprefix(STEP_TIME + '/')}"


def rewards_mean(name: str) -> str:
    """Mean of the reward component `name` over the completions that it scored, TRL's key; NaN where it scored none."""
    return f"rewards/{name}/mean"


def rewards_std(name: str) -> str:
    """Standard deviation of the reward component `name`, TRL's key; NaN where it scored fewer than two completions."""
    return f"rewards/{name}/std"


def pair_agreement(name: str) -> str:
    """Share of pairs within a group that the trained-on reward orders as the observed component `name` does.

    Pairs that the component rates equal do not count; a pair that only the reward rates equal counts half. NaN where
    no pair counts.
    """
    return f"rewards/{name}/pair_agreement"


def held_out(key: str) -> str:
    """The key under which `key` is logged when measured on held-out prompts."""
    return EVAL_PREFIX + key
