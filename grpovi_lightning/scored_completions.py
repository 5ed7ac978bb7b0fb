"""Completions of a policy with their rewards, on disk: what `grpovi sample` writes and `grpovi teach` measures.

`completions.parquet` has a row for each completion: `row` (of the prompt in its table), `member` (0 to G - 1), `prompt`
and `completion` as text, `tokens`, `truncated`, `logprob` (of the whole completion under the policy, nats), and
`reward/<name>` for each component of the reward, NaN where it cannot score the completion.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from grpovi_lightning.conversations import Prompt, as_messages
from grpovi_lightning.data import PromptDataModule
from grpovi_lightning.data.tables import Table
from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.models import CausalLMSource, LanguageModel
from grpovi_lightning.modules.tables import check_prompts
from grpovi_lightning.ops import masked_sum
from grpovi_lightning.randomness import step_indices
from grpovi_lightning.rewards import Reward
from grpovi_lightning.rollout import Decoder, RolloutEngine, SamplingConfig
from grpovi_lightning.run_record.layout import PREFERENCES_FILE, replace_file
from grpovi_lightning.structures import PromptBatch, Rollout
from grpovi_lightning.table_in_parts import table_in_parts

COMPLETIONS_FILE = "completions.parquet"
REWARD = "reward/"
"""What the columns of rewards begin with."""


@dataclass(frozen=True)
class CompletionRun:
    """What is sampled, from what, and how it is scored.

    A completion is a pure function of the policy's weights, its prompt and the seed, so a run that was stopped goes on
    where it was, with the same result.

    Attributes:
        policy: whose completions they are.
        data: its training table has the prompts, or its validation table.
        reward: every component is recorded.
        completions: G, sampled for each prompt.
        n_prompts: how many prompts, drawn by the seed; None: all.
        table: `train` or `validation`.
        sampling: how they are sampled.
        decoder: how they are decoded; default `GroupDecoder`.
        prompts_at_once: prompts that are sampled and scored together, and saved together.
        seed: of the prompts that are drawn, and of the sampling.
        device: such as `cuda`; None: a GPU where there is one.
    """

    policy: CausalLMSource
    data: PromptDataModule
    reward: Reward
    completions: int = 10
    n_prompts: int | None = None
    table: str = "train"
    sampling: SamplingConfig = SamplingConfig()  # noqa: RUF009  a frozen value
    decoder: Decoder | None = None
    prompts_at_once: int = 8
    seed: int = 1
    device: str | None = None

    def __post_init__(self) -> None:
        settings = ("completions", "n_prompts", "prompts_at_once")
        at_least_one("", **{name: getattr(self, name) for name in settings})

    def check(self, **rewards: str | None) -> None:
        """Raise `UserError` for what can be told to be wrong before anything is loaded.

        `rewards` are settings that name one of the reward's components, or are None.
        """
        for setting, name in rewards.items():
            if name is not None and name not in self.reward.weights():
                raise UserError(f"{setting}: got {name!r}, expected one of {', '.join(self.reward.weights())}")
        self.policy.check()
        if self.decoder is not None:
            self.decoder.check(self.policy, self.sampling)
        self.reward.check()
        self.data.setup("sample")
        if self.table not in self.data.tables:
            raise UserError(f"table: got {self.table!r}, expected one of {', '.join(self.data.tables)}")
        table = self.data.tables[self.table]
        if self.n_prompts is not None and self.n_prompts > len(table):
            raise UserError(f"n_prompts: got {self.n_prompts}, expected at most the {len(table)} of {table.name}")
        self.reward.check_columns({self.table: self.data.handed_over(table.columns)})

    def write(self, folder: Path) -> pd.DataFrame:
        """Sample, score and write what `folder` does not have yet; return all of it."""
        file = folder / COMPLETIONS_FILE
        if file.exists():
            return pd.read_parquet(file)
        engine, policy = self._loaded()

        def scored(rows: list[int]) -> pd.DataFrame:
            prompts = self.data.collate([self._rows[i] for i in rows]).to(policy.device)
            return self._scored(engine, policy, prompts)

        return table_in_parts(file, self._blocks(), scored, "completions")

    @property
    def _rows(self) -> Table:
        return self.data.tables[self.table]

    def _blocks(self) -> list[list[int]]:
        """Return the places in the table of the prompts that are sampled together."""
        count = self.n_prompts or len(self._rows)
        order = sorted(step_indices(self.seed, 0, len(self._rows), count))
        return [order[start : start + self.prompts_at_once] for start in range(0, count, self.prompts_at_once)]

    def _loaded(self) -> tuple[RolloutEngine, LanguageModel]:
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        policy = self.policy.load()
        self.reward.load(policy.tokenizer)
        check_prompts(self.data, policy, self.reward, self.sampling.max_completion_length)
        policy.to(device).requires_grad_(False)
        self.reward.to(device)
        return RolloutEngine(self.sampling, self.decoder), policy

    def _scored(self, engine: RolloutEngine, policy: LanguageModel, prompts: PromptBatch) -> pd.DataFrame:
        rollout = engine.generate(policy, prompts, self.completions, self.seed, step=0)
        scores = {f"{REWARD}{name}": values for name, values in self.reward.components(rollout).items()}
        return completion_table(rollout, scores)

    def preferences(self, by: str, folder: Path, ended_only: bool = False) -> tuple[int, int]:
        """Write pairs of completions of the same prompt, the better first by a reward, as preference data.

        Completions 0 and 1 of a prompt are a pair, then 2 and 3, and so on. Pairs of equal rewards are left out, as are
        those in which one has none. `chosen_truncated` and `rejected_truncated` of a pair say which were cut off.

        Args:
            by: the component of the reward that decides.
            folder: with the completions.
            ended_only: whether pairs with a completion that was cut off are left out.

        Returns:
            how many pairs were written, and in how many, written or left out, a completion was cut off.
        """
        table = pd.read_parquet(folder / COMPLETIONS_FILE)
        pairs = []
        places = {self._rows[i]["_row"]: i for i in range(len(self._rows))}
        for number, group in table.groupby("row", sort=False):
            contents = self.data.collate([self._rows[places[number]]]).contents[0]
            pairs += _pairs(contents, *(group[name].tolist() for name in ("completion", "truncated", f"{REWARD}{by}")))
        ended = [pair for pair in pairs if not (pair["chosen_truncated"] or pair["rejected_truncated"])]
        written = ended if ended_only else pairs
        replace_file(folder / PREFERENCES_FILE, "".join(json.dumps(pair) + "\n" for pair in written))
        return len(written), len(pairs) - len(ended)


def completion_table(rollout: Rollout, scores: dict[str, torch.Tensor]) -> pd.DataFrame:
    """Return B completions as rows, with columns of scores [B]."""
    size = rollout.group_size
    logprobs = masked_sum(rollout.old_logprobs.double(), rollout.completion_mask, dim=1)
    return pd.DataFrame(
        {
            "row": rollout.prompts.indices.repeat_interleave(size).tolist(),
            "member": list(range(size)) * len(rollout.prompts),
            "prompt": [text for text in rollout.prompts.texts for _ in range(size)],
            "completion": list(rollout.texts),
            "tokens": rollout.lengths.tolist(),
            "truncated": rollout.truncated.tolist(),
            "logprob": logprobs.tolist(),
        }
        | {name: values.double().tolist() for name, values in scores.items()}
    )


def _pairs(
    prompt: Prompt, completions: Sequence[str], truncated: Sequence[bool], rewards: Sequence[float]
) -> list[dict[str, Any]]:
    found = []
    for i in range(0, len(completions) - 1, 2):
        difference = rewards[i] - rewards[i + 1]
        if isnan(difference) or difference == 0 or completions[i] == completions[i + 1]:
            continue
        better, worse = (i, i + 1) if difference > 0 else (i + 1, i)
        cut = {"chosen_truncated": truncated[better], "rejected_truncated": truncated[worse]}
        found.append(_preference(prompt, completions[better], completions[worse]) | cut)
    return found


def _preference(prompt: Prompt, better: str, worse: str) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt, "chosen": better, "rejected": worse}
    row = {"prompt": list(prompt.messages), "chosen": as_messages(better), "rejected": as_messages(worse)}
    for_template = {"tools": prompt.tools, "chat_template_kwargs": prompt.template_kwargs}
    return row | {name: value for name, value in for_template.items() if value}
