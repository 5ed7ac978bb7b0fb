"""How fast a reward can teach a policy, measured before any training (Razin et al., arXiv 2503.15477).

The more a reward varies among the completions that the policy gives to a prompt, the sooner it rises: until the
expected reward of a prompt has risen by gamma it takes at least of the order of Var^(-1/3) (their Theorem 1).
"""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from grpovi_lightning.adjustment import increase_variance
from grpovi_lightning.run_record.layout import replace_file
from grpovi_lightning.scored_completions import REWARD

PROMPTS_FILE = "prompts.parquet"


def measure(completions: pd.DataFrame, gold: str | None = None) -> pd.DataFrame:
    """Return what each reward does with the completions of each prompt.

    Rewards are divided by their standard deviation over all completions first, because only then can the variances of
    rewards of different scales be compared. Razin et al. do so, too.

    Args:
        completions: as `CompletionRun` writes them, at least two for each prompt.
        gold: the reward that the others should order completions as; None: there is none.

    Returns:
        a row for each prompt and reward: `row`, `reward`, `mean`, `variance` (unbiased, of the rewards as they are),
        `adjusted_variance` (after GRPOVI with the policy's weights, within the range of the reward over all
        completions), `constant` (all rewards of the prompt are equal), `accuracy` (share of pairs ordered as gold
        orders them, ties of the reward half; NaN without gold).
    """
    names = [name.removeprefix(REWARD) for name in completions.columns if name.startswith(REWARD)]
    size = len(set(completions["member"]))
    ordered = completions.sort_values(["row", "member"])
    rows = ordered["row"].to_numpy()[::size]

    def grouped(column: str) -> Tensor:
        return torch.tensor(ordered[column].to_numpy(dtype="float64")).unflatten(0, (-1, size))

    weights = grouped("logprob")
    best = None if gold is None else grouped(f"{REWARD}{gold}")
    return pd.concat([_of_reward(name, rows, grouped(f"{REWARD}{name}"), weights, best) for name in names])


def _of_reward(name: str, rows: object, rewards: Tensor, log_weights: Tensor, gold: Tensor | None) -> pd.DataFrame:
    scored = ~rewards.isnan().any(dim=1)
    known = rewards[scored]
    spread = float(known.std())
    scaled = rewards / spread if spread > 0 else rewards * 0.0
    adjusted = torch.full_like(scaled, torch.nan)
    if spread > 0:
        low, high = float(scaled[scored].min()), float(scaled[scored].max())
        adjusted[scored] = increase_variance(scaled[scored], log_weights[scored], lower=low, upper=high)
    return pd.DataFrame(
        {
            "row": rows,
            "reward": name,
            "mean": rewards.mean(dim=1).tolist(),
            "variance": scaled.var(dim=1).tolist(),
            "adjusted_variance": adjusted.var(dim=1).tolist() if spread > 0 else [0.0] * len(scaled),
            "constant": (rewards.amax(dim=1) == rewards.amin(dim=1)).tolist(),
            "accuracy": [torch.nan] * len(rewards) if gold is None else ordered_as(rewards, gold).tolist(),
        }
    )


def ordered_as(rewards: Tensor, gold: Tensor) -> Tensor:
    """Return the share of pairs of each group that rewards [P, G] order as gold [P, G] does: [P].

    A tie of the reward counts half. Pairs that gold does not order do not count: NaN where it orders none.

    >>> gold = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    >>> ordered_as(torch.tensor([[0.1, 0.7, 0.7], [1.0, 2.0, 3.0]]), gold).tolist()
    [0.8333333134651184, nan]
    """
    of_reward = (rewards[:, :, None] - rewards[:, None, :]).sign()
    of_gold = (gold[:, :, None] - gold[:, None, :]).sign()
    counts = (of_gold > 0) & ~of_reward.isnan()
    return ((of_reward + 1) / 2).nan_to_num().mul(counts).sum(dim=(1, 2)) / counts.sum(dim=(1, 2))


def write_measure(completions: pd.DataFrame, folder: Path, gold: str | None) -> pd.DataFrame:
    """Measure, and write `prompts.parquet` beside the completions."""
    found = measure(completions, gold)
    replace_file(folder / PROMPTS_FILE, found.to_parquet(index=False))
    return found
