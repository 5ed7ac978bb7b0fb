"""Preferences decided anew by a reward: what `grpovi relabel` writes.

`preferences.jsonl` has the rows in the format that they came in; the answer with the higher reward is the preferred
one. `scores.parquet` has a row for each row of the table: `row` (its number in its source), `preferred` and `other`
(the rewards of the two answers, by the table's own preference; NaN where one cannot be scored) and `swapped`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from grpovi_lightning.conversations import Answer, Conversation, Prompt, answer_text, is_messages, without_gaps
from grpovi_lightning.data import PreferenceDataModule
from grpovi_lightning.data.formats import PreferenceRows
from grpovi_lightning.data.modules import TextPairs
from grpovi_lightning.data.tables import Table
from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.modules.tables import check_tables
from grpovi_lightning.rewards import Reward
from grpovi_lightning.rewards.sequences import text_rows
from grpovi_lightning.run_record.layout import PREFERENCES_FILE, replace_file
from grpovi_lightning.structures import PromptBatch, Rollout
from grpovi_lightning.table_in_parts import table_in_parts

SCORES_FILE = "scores.parquet"
_FOR_TEMPLATE = ("tools", "chat_template_kwargs")


@dataclass(frozen=True)
class Relabelling:
    """Which preferences are decided anew, and by what.

    No policy is needed: a reward model reads each answer as it reads those of the tables that it is trained on. Of an
    answer of several messages the last one is scored, after the others. Reward functions get no `completion_ids`, and
    the table's other columns.

    Attributes:
        data: its training table has the preferences, or its validation table.
        reward: what scores the answers.
        by: the component of the reward that decides; None: its only one.
        table: `train` or `validation`.
        rows_at_once: rows that are scored together, and saved together.
        device: such as `cuda`; None: a GPU where there is one.
    """

    data: PreferenceDataModule
    reward: Reward
    by: str | None = None
    table: str = "train"
    rows_at_once: int = 64
    device: str | None = None

    def __post_init__(self) -> None:
        at_least_one("", rows_at_once=self.rows_at_once)
        names = list(self.reward.weights())
        if self.by not in names and not (self.by is None and len(names) == 1):
            raise UserError(f"by: got {self.by!r}, expected one of the reward's components {', '.join(names)}")
        if (limit := self.data.preparation.max_tokens) is not None:
            raise UserError(
                f"preparation.max_tokens: got {limit}, which counts the tokens of a model that is trained; leave it "
                "out here, and set it where the relabelled table is read"
            )

    def check(self) -> None:
        """Raise `UserError` for what can be told to be wrong before anything is loaded."""
        self.reward.check()
        self.data.setup("relabel")
        if self.table not in self.data.tables:
            raise UserError(f"table: got {self.table!r}, expected one of {', '.join(self.data.tables)}")
        self.reward.check_columns({self.table: self._handed_over()})

    def write(self, folder: Path) -> dict[str, int]:
        """Score what `folder` has no scores of yet, and write the preferences.

        Returns:
            how many rows there are; and of them `swapped`, and left out: `ties`, of two equal rewards, and `unscored`,
            of which an answer has none.

        Raises:
            UserError: the reward's model cannot read an answer, or no row is left.
        """
        file = folder / SCORES_FILE
        scores = pd.read_parquet(file) if file.exists() else self._scored(file)
        found = list(zip(*(scores[name].tolist() for name in ("row", "preferred", "other")), strict=True))
        scored = [(row, preferred, other) for row, preferred, other in found if not isnan(preferred + other)]
        swapped = {row: other > preferred for row, preferred, other in scored if preferred != other}
        ties, unscored = len(scored) - len(swapped), len(found) - len(scored)
        if not swapped:
            raise UserError(
                f"{self._rows.name}: got {ties} ties and {unscored} unscored of {len(found)} rows, expected some whose "
                "answers the reward tells apart; nothing is written"
            )
        places = {row: place for place, row in enumerate(self._rows.ids)}
        lines = [self._relabelled(self._rows[places[row]], is_swapped) for row, is_swapped in swapped.items()]
        replace_file(folder / PREFERENCES_FILE, "".join(json.dumps(line) + "\n" for line in lines))
        return {"rows": len(found), "swapped": sum(swapped.values()), "ties": ties, "unscored": unscored}

    @property
    def _rows(self) -> Table:
        return self.data.tables[self.table]

    def _scored(self, file: Path) -> pd.DataFrame:
        self.reward.load(None)
        alone = SimpleNamespace(tables={self.table: self._rows}, collate=self.data.collate)
        for reader in self.reward.readers():
            check_tables(alone, reader.limits, partial(_rows_of, reader.tokenizer))
        self.reward.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        places = list(range(len(self._rows)))
        blocks = [places[start : start + self.rows_at_once] for start in places[:: self.rows_at_once]]
        return table_in_parts(file, blocks, self._scores_of, "relabelling")

    def _scores_of(self, places: list[int]) -> pd.DataFrame:
        rows = [self._rows[place] for place in places]
        prompts, answers = _last_turns(self.data.collate(rows))
        scores = torch.full((len(answers),), torch.nan, dtype=torch.float64)
        # A call of a tool stands beside the text of a message, and text is all that rewards get.
        scorable = [i for i, answer in enumerate(answers) if not _calls_tools(answer)]
        if scorable:
            asked = self._prompts([prompts[i] for i in scorable], [rows[i % len(rows)] for i in scorable])
            rollout = Rollout.of_texts(asked, [answer_text(answers[i]) for i in scorable])
            scores[scorable] = self.reward.components(rollout)[self._component].double().cpu()
        preferred, other = scores.chunk(2)
        return pd.DataFrame(
            {
                "row": [row["_row"] for row in rows],
                "preferred": preferred.tolist(),
                "other": other.tolist(),
                "swapped": (other > preferred).tolist(),
            }
        )

    @property
    def _component(self) -> str:
        return next(iter(self.reward.weights())) if self.by is None else self.by

    def _prompts(self, contents: Sequence[Prompt], rows: Sequence[dict[str, Any]]) -> PromptBatch:
        columns = {name: [row[name] for row in rows] for name in self._handed_over()}
        return PromptBatch(contents, torch.tensor([row["_row"] for row in rows]), columns)

    def _handed_over(self) -> list[str]:
        """Return the columns that reward functions get."""
        return [name for name in self._rows.columns if name not in self.data.rows.columns(self._rows.columns)]

    def _relabelled(self, row: dict[str, Any], swapped: bool) -> dict[str, Any]:
        """Return what a row says, in its own format, without columns that may be about one of the answers."""
        rows = self.data.rows
        assert isinstance(rows, PreferenceRows), "of preferences"
        columns = [*rows.columns(self._rows.columns), *_FOR_TEMPLATE, self.data.subset_column]
        said = {name: row[name] for name in columns if name is not None and row.get(name) is not None}
        if swapped:
            said |= {rows.chosen: said[rows.rejected], rows.rejected: said[rows.chosen]}
        return {name: without_gaps(value) if is_messages(value) else value for name, value in said.items()}


def _calls_tools(answer: Answer) -> bool:
    return not isinstance(answer, str) and bool(answer[-1].get("tool_calls"))


def _last_turns(batch: TextPairs) -> tuple[list[Prompt], list[Answer]]:
    """Return what was asked and the last message, of the preferred answers and then of the others."""
    prompts: list[Prompt] = []
    answers: list[Answer] = []
    for side in ("chosen", "rejected"):
        for prompt, answer in zip(batch["prompt"], batch[side], strict=True):
            if isinstance(prompt, Conversation):
                prompts.append(replace(prompt, messages=[*prompt.messages, *answer[:-1]]))
                answers.append(answer[-1:])
            else:
                prompts.append(prompt)
                answers.append(answer)
    return prompts, answers


def _rows_of(tokenizer: PreTrainedTokenizerBase, batch: TextPairs) -> list[list[int]]:
    return text_rows(tokenizer, *_last_turns(batch))
