"""The training steps of a run, read from the completions that it kept."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.completions import TRAIN, halvings_of, parts_of, read_part
from grpovi_lightning.run_record.layout import COMPLETIONS_FOLDER, RecordError
from grpovi_lightning.selection import ScoredRollout
from grpovi_lightning.structures import PromptBatch, Rollout

_NEEDED = ("reward", "adjusted", "advantage", "ref_logprob", "ids")


@dataclass(frozen=True)
class KeptStep:
    """One training step, as its run kept it.

    Attributes:
        pool: the completions and their raw rewards, before any selection of them; NaN where a group was left out. Of
            the log-probabilities only the sum over a completion is known; it stands at its first token.
        advantages: [P, G] float64 that the run gave them; NaN where a selection did not keep a completion.
    """

    pool: ScoredRollout
    advantages: Tensor


def kept_steps(run: Path, seed: int) -> list[KeptStep]:
    """Read the training steps of a run.

    Args:
        run: its folder.
        seed: the one that it sampled with.

    Raises:
        UserError: it kept no completions, or not what is needed.
    """
    try:
        tables = [read_part(part.path) for part in parts_of(run / COMPLETIONS_FOLDER) if part.split == TRAIN]
    except RecordError as error:
        raise UserError(str(error)) from error
    tables = [table for table in tables if len(table)]
    if not tables:
        raise UserError(
            f"{run}: no completions of training steps in {COMPLETIONS_FOLDER}/; expected the folder of a run of "
            "`grpovi fit` with GRPO, and not `completions: {max_megabytes: 0}`"
        )
    if any(map(halvings_of, tables)):
        raise UserError(
            f"{run}: only a part of its completions was kept (completions.max_megabytes), and a step is computed from "
            "all of them; raise the limit and run it again"
        )
    table = pa.concat_tables([each.replace_schema_metadata(None) for each in tables], promote_options="default")
    if missing := [name for name in _NEEDED if name not in table.column_names]:
        raise UserError(f"{run}: its completions lack {', '.join(missing)}: an older version kept them; run it again")
    rows = table.to_pandas()
    return [_kept_step(of_step, seed, run) for _, of_step in rows.groupby("step", sort=True)]


def _kept_step(rows: pd.DataFrame, seed: int, run: Path) -> KeptStep:
    members, step = rows["member"].tolist(), rows["step"].tolist()[0]
    size = max(members) + 1
    if len(rows) % size or members != list(range(size)) * (len(rows) // size):
        raise UserError(f"{run}: step {step}: got {len(rows)} completions, expected groups of {size}; remove the step")
    first = rows.iloc[::size]
    ids = [torch.tensor(each, dtype=torch.long) for each in rows["ids"]]
    lengths = torch.tensor([len(each) for each in ids])
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]

    def numbers(name: str) -> Tensor:
        return torch.tensor(rows[name].to_numpy(dtype="float64"))

    def at_first_token(name: str) -> Tensor:
        return torch.nn.functional.pad(numbers(name)[:, None], (0, padded.shape[1] - 1))

    rollout = Rollout(
        prompts=PromptBatch(first["prompt"].tolist(), torch.tensor(first["row"].tolist()), {}),
        group_size=size,
        step=step,
        prompt_ids=torch.zeros(len(first), 1, dtype=torch.long),
        prompt_mask=torch.ones(len(first), 1, dtype=torch.bool),
        completion_ids=padded,
        completion_mask=mask,
        old_logprobs=at_first_token("logprob"),
        truncated=torch.tensor(rows["truncated"].tolist()),
        texts=rows["completion"].tolist(),
        ref_logprobs=None if rows["ref_logprob"].isna().to_numpy().any() else at_first_token("ref_logprob"),
        seed=seed,
    )
    rewards = rollout.grouped(numbers("reward").float())  # they were float32
    left_out = rollout.grouped(numbers("adjusted")).isnan().all(dim=1, keepdim=True)
    rewards = rewards.masked_fill(left_out, torch.nan)
    return KeptStep(ScoredRollout(rollout, {}, rewards, lengths.sum()), rollout.grouped(numbers("advantage")))
