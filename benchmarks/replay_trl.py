"""Trains on the very completions that TRL trained on, and compares the weights after each step; see README.md."""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from against_trl import HERE, trl_system
from reporting import consoles, titled_table
from safetensors import safe_open
from step_result import at_least
from torch import Tensor
from training_step import StepTimes, quiet, train
from workload import InputError, Workload, read_workload

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.structures import PromptBatch, Rollout

COLUMNS = ("seed", "step", "update: ours from TRL's", "KL, TRL", "KL, ours", "reward, TRL", "reward, ours")


class Record:
    """What `trl_record.py` wrote."""

    def __init__(self, path: Path) -> None:
        """Reads the file."""
        with safe_open(path, framework="pt") as file:
            self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.logged: list[dict[str, float]] = json.loads(file.metadata()["logged"])

    def __len__(self) -> int:
        return len(self.logged)

    def get(self, step: int | str, name: str) -> Tensor:
        """A tensor of a step."""
        return self.tensors[f"{step}/{name}"]


class Replay(StepTimes):
    """Puts the recorded rollouts in the place of sampled ones, and notes the weights after each step."""

    def __init__(self, record: Record) -> None:
        """Names the scalars that are compared."""
        super().__init__([keys.KL, keys.REWARD])
        self.record, self.weights = record, []

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Replaces the sampling."""
        pl_module.engine = self

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """Notes scalars and weights."""
        super().on_train_batch_end(trainer)
        self.weights.append(flat_weights(pl_module.policy))

    def generate(self, policy: LanguageModel, prompts: PromptBatch, group_size: int, seed: int, step: int) -> Rollout:
        """What TRL sampled in this step, in the place of `RolloutEngine.generate`."""
        prompt_ids, prompt_mask, ids, mask = (
            self.record.get(step, name) for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        )
        kept = mask.bool()
        rows = [row[of_row].tolist() for row, of_row in zip(ids, kept, strict=True)]
        ends = torch.isin(ids, torch.tensor(policy.end_token_ids)) & kept
        rollout = Rollout(
            prompts=prompts,  # the reward reads completions alone
            group_size=group_size,
            step=step,
            prompt_ids=prompt_ids[::group_size],
            prompt_mask=prompt_mask[::group_size].bool(),
            completion_ids=ids,
            completion_mask=kept,
            old_logprobs=torch.zeros(ids.shape),
            truncated=~ends.any(dim=1),
            texts=policy.tokenizer.batch_decode(rows, skip_special_tokens=True),
        )
        with torch.no_grad():
            statistics = policy.completion_statistics(rollout, 1.0)
        return replace(rollout, old_logprobs=statistics.logprobs)


def flat_weights(policy: LanguageModel) -> Tensor:
    """All weights in the order of their names, as in the record."""
    return torch.cat([weights.detach().flatten() for _, weights in sorted(policy.model.named_parameters())]).clone()


def replayed(work: Workload, record: Record) -> Replay:
    """Trains on the recorded completions."""
    replay = Replay(record)
    train(work, len(record), 0, replay)
    return replay


def recorded(trl_python: str, folder: Path, steps: int, seed: int) -> Record:
    """Runs TRL in its own Python.

    Raises:
        InputError: it failed.
    """
    script = HERE / "trl_record.py"
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "record.safetensors"
        command = [trl_python, str(script), str(folder), f"--output={output}", f"--steps={steps}", f"--seed={seed}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(f"TRL failed: {last}; the command was {shlex.join(command)}")
        return Record(output)


def rows(record: Record, replay: Replay) -> list[tuple[float, ...]]:
    """For each step the difference of the updates, and KL and reward of both."""
    start, found = record.get("start", "weights"), []
    for step, (theirs, ours) in enumerate(zip(record.logged, replay.scalars, strict=True)):
        moved = record.get(step, "weights") - start
        difference = float((replay.weights[step] - start - moved).norm() / moved.norm())
        found.append((difference, theirs["kl"], ours[keys.KL], theirs["reward"], ours[keys.REWARD]))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status, 2 for input that does not do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="a workload, as write_workload.py writes it")
    parser.add_argument("--trl-python", type=Path, required=True, metavar="PATH", help="a Python that has TRL")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1, help="of more than one seed only the last step is shown")
    arguments = parser.parse_args(argv)
    found: list[tuple[int, int, tuple[float, ...]]] = []
    try:
        at_least(arguments, steps=2, seeds=1)
        work = read_workload(arguments.directory)
        if work.temperature != 1.0:
            raise InputError(f"{arguments.directory}: temperature: got {work.temperature}, expected 1")
        trl, _ = trl_system(arguments.trl_python)
        quiet()
        for seed in range(arguments.seeds):
            record = recorded(trl.python, arguments.directory, arguments.steps, seed)
            found += [(seed, step, row) for step, row in enumerate(rows(record, replayed(work, record)), start=1)]
    except (InputError, UserError) as error:
        print(f"replay_trl.py: error: {error}", file=sys.stderr)
        return 2
    table = titled_table("The same completions, trained on by TRL and by this project", *COLUMNS)
    for seed, step, (difference, *figures) in found:
        if arguments.seeds == 1 or step == arguments.steps:
            table.add_row(str(seed), str(step), f"{difference:.1e}", *(f"{figure:.5f}" for figure in figures))
    out, _ = consoles()
    out.print(table)
    out.print("Update: how far all weights have come since the start; the difference as a share of TRL's.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
