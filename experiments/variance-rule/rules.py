"""A rule of right and wrong for the embedded task."""

from collections.abc import Sequence

from grpovi_lightning.data.embedded import gold_reward


def right(prompts: Sequence[str], completions: Sequence[str], above: float) -> list[float]:
    """Return 1 where the gold reward of a completion is more than `above`, else 0."""
    return [float(reward > above) for reward in gold_reward(prompts, completions)]
