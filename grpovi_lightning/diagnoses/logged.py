"""What a run logged, under this package's names, whichever framework wrote it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.diagnoses.series import Series, Stretch

TRL_PREFIX = "train/"
"""TRL, through the trainer of transformers, logs training scalars below it; held-out ones stand below `eval/` as here.

What it logs otherwise has the same names, with one exception: its `reward_std` is the standard deviation over the whole
batch (TRL 1.16, `GRPOTrainer`), which is `reward_batch_std` here.
"""
_TRL_NAMES = {keys.REWARD_STD: keys.REWARD_BATCH_STD}
GOLD = "gold"
"""The component that is taken for a judge in runs of TRL, which do not say which components are only observed."""


_READ = {
    keys.REWARD,
    keys.REWARD_STD,
    keys.REWARD_BATCH_STD,
    keys.FRAC_REWARD_ZERO_STD,
    keys.FRAC_GROUPS_ALL_HIGH,
    keys.FRAC_GROUPS_ALL_LOW,
    keys.KL,
    keys.ENTROPY,
    keys.CLIP_RATIO_REGION_MEAN,
    keys.COMPLETIONS_MEAN_LENGTH,
    keys.COMPLETIONS_CLIPPED_RATIO,
    keys.LENGTH_REWARD_CORRELATION,
    keys.ADVANTAGE_ABS_MAX,
    keys.ADJUSTMENT_SIGN_FLIPS,
}


def is_read(tag: str) -> bool:
    """Return whether a rule may read what was logged under a tag.

    >>> is_read("eval/kl"), is_read("train/rewards/gold/mean"), is_read("step_time/decode")
    (True, True, False)
    """
    name = tag.removeprefix(TRL_PREFIX).removeprefix(keys.EVAL_PREFIX)
    return name in _READ or name.startswith(keys.rewards(""))


@dataclass(frozen=True)
class Logged:
    """The scalars of one run, and what has to be known beside them.

    Attributes:
        series: tag -> values.
        adjusts: whether the run's adjustment can change rewards; None where that is not known.
        gold: reward components that the policy is not trained on.
    """

    series: Mapping[str, Series]
    adjusts: bool | None
    gold: tuple[str, ...]

    def get(self, key: str) -> Series | None:
        """Return what was logged under a key; None where nothing finite was."""
        found = self.series.get(key)
        return found if found is not None and len(found) else None

    def highest(self, key: str, above: float) -> Stretch | None:
        """Return the stretch of a scalar with the largest mean; None where that is not above `above`, or not known."""
        series = self.get(key)
        return None if series is None else series.highest(above)


def logged(series: Mapping[str, Series], adjusts: bool | None = None, gold: Iterable[str] | None = None) -> Logged:
    """Return the scalars of a run under this package's names.

    Args:
        series: as they were logged, by this package or by TRL.
        adjusts: whether the run's adjustment can change rewards; None where that is not known.
        gold: reward components that the policy is not trained on. None: those whose agreement with the reward was
            logged, which this package does for the components that are only observed; of runs of TRL the one named
            "gold".
    """
    if of_trl := keys.REWARD not in series and TRL_PREFIX + keys.REWARD in series:
        series = {_from_trl(tag): values for tag, values in series.items()}
    if gold is None:
        observed = [name for name in components(series) if keys.pair_agreement(name) in series]
        gold = [GOLD] if of_trl else observed
    return Logged(series, adjusts, tuple(gold))


def _from_trl(tag: str) -> str:
    """Return this package's name of what TRL logs under `tag`.

    >>> _from_trl("train/kl"), _from_trl("eval/reward"), _from_trl("train/reward_std")
    ('kl', 'eval/reward', 'reward_batch_std')
    """
    name = tag.removeprefix(TRL_PREFIX)
    return _TRL_NAMES.get(name, name)


def components(series: Iterable[str]) -> list[str]:
    """Return the names of the reward components whose training means are among these tags.

    >>> components(["rewards/a/mean", "rewards/b/c/mean", "reward", "eval/rewards/d/mean"])
    ['a', 'b/c']
    """
    return _named(series, keys.rewards_mean)


def trained_components(series: Iterable[str]) -> list[str]:
    """Return the components whose shares of the reward's variance are among these tags: those that are trained on."""
    return _named(series, keys.rewards_variance_share)


def _named(tags: Iterable[str], key_of: Callable[[str], str]) -> list[str]:
    before, after = key_of("\n").split("\n")
    return sorted(tag[len(before) : -len(after)] for tag in tags if tag.startswith(before) and tag.endswith(after))
