"""Compare this project with TRL: python benchmarks/against_trl.py --trl-python trl-env/bin/python; see README.md."""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pandas as pd
import torch
from command import InputError, run_command
from reporting import consoles, duration, machine, output_path, print_table, training_device, write_table
from rich.console import Console
from safetensors import safe_open
from torch import Tensor
from training_step import DECODERS, StepTimes, quiet, train
from workload import KEYS, LEAST, Workload, read_workload
from write_workload import BY_DEFAULT, NAMED, WORKLOADS, write_workload

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.structures import PromptBatch, Rollout

HERE = Path(__file__).parent
TRL, OURS = "trl", "grpovi-lightning"
VERSIONS = """
from importlib.metadata import version
print(*(f"{package} {version(package)}" for package in ("trl", "torch", "transformers")), sep=", ")
"""


class RunFailed(RuntimeError):
    """A run ended early or printed no result; the message is one line."""


class System(NamedTuple):
    """Who trains: the name in its JSON line, its Python, its script, and arguments that only this script has."""

    name: str
    python: str
    script: str
    arguments: tuple[str, ...] = ()

    def run(self, *arguments: object) -> str:
        """Run the script in a process of its own, so that its peak memory is its own; return its last line."""
        command = [self.python, str(HERE / self.script), *map(str, arguments), *self.arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RunFailed(f"{self.name}: exit status {done.returncode}: {last}; it was {shlex.join(command)}")
        return (done.stdout.strip().splitlines() or [""])[-1]

    def measure(self, workload: str, number: int, seed: int, steps: int, threads: int) -> dict[str, Any]:
        """Return one run, a line of the CSV; raise `RunFailed` if its last line is not the JSON of a step script."""
        line = self.run(WORKLOADS / workload, f"--steps={steps}", f"--threads={threads}", f"--seed={seed}")
        settings = {"workload": workload, "round": number, "seed": seed, "steps": steps, "threads": threads}
        try:
            found = json.loads(line)
            assert found["system"] == self.name and set(KEYS) < found.keys()
        except (ValueError, TypeError, KeyError, AssertionError):
            raise RunFailed(f"{self.name}: got the last line {line!r}, expected the JSON of {self.script}") from None
        return settings | found


def trl_system(python: Path) -> tuple[System, str]:
    """Return TRL's side and the versions of its packages; raise `InputError` where `python` has no TRL."""
    interpreter = os.path.abspath(python.expanduser())  # not resolved: the link is what makes it a virtual environment
    try:
        found = subprocess.run([interpreter, "-c", VERSIONS], capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"--trl-python: got {python}, which does not run: {error.strerror}") from None
    if found.returncode:
        raise InputError(f"--trl-python: got {python}, where TRL is not installed; benchmarks/README.md says how")
    return System(TRL, interpreter, "trl_step.py"), found.stdout.strip()


def compare(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row a workload: medians of both systems over the rounds, and the lowest and highest ratio of a round."""
    figures = ["median_step_seconds", "completion_tokens_per_second", "peak_rss_mb"]
    wide = runs.pivot_table(figures, ["workload", "round"], "system", sort=False, dropna=False)
    assert wide.notna().all(axis=None), "every round has a run of both systems"
    found = wide.groupby(level="workload", sort=False).median()
    seconds: Any = wide["median_step_seconds"]
    by_workload = (seconds[TRL] / seconds[OURS]).groupby(level="workload", sort=False)
    found[("lowest", "")], found[("highest", "")] = by_workload.min(), by_workload.max()
    return found


def print_comparison(console: Console, runs: pd.DataFrame) -> None:
    """Print a line a workload."""
    rows = []
    for workload, row in compare(runs).to_dict("index").items():
        (trl, ours), tokens, peaks = ([row[name, of] for of in (TRL, OURS)] for name in (KEYS[0], KEYS[1], KEYS[2]))
        ratio = f"{trl / ours:.2f} ({row['lowest', '']:.2f} to {row['highest', '']:.2f})"
        figures = [*(f"{value:,.0f}" for value in (*tokens, *peaks)), f"{peaks[0] / peaks[1]:.2f}"]
        rows.append([str(workload), duration(trl), duration(ours), ratio, *figures])
    columns = ("step\nTRL", "step\nours", "TRL / ours\n(rounds)", "tokens/s\nTRL", "tokens/s\nours")
    columns = ("", *columns, "MiB\nTRL", "MiB\nours", "TRL /\nours")
    note = f"Medians over {runs['round'].max()} round(s); in brackets the lowest and highest ratio of a round."
    print_table(console, "Training steps of TRL's GRPOTrainer and of this project", columns, rows, note)


def print_learning(console: Console, runs: pd.DataFrame) -> None:
    """Print the range of TRL's seeds, and where each seed of this project lies."""
    quantities = ["kl_last", "reward_last"]
    trl, ours = (runs[runs["system"] == name].set_index("seed")[quantities] for name in (TRL, OURS))
    lowest, highest, n = trl.min(), trl.max(), len(ours)
    where = ours.gt(highest).replace({True: "above", False: "within"}).mask(ours.lt(lowest), "below")
    rows = [["TRL, lowest to highest", *(f"{lowest[q]:.5f} to {highest[q]:.5f}" for q in quantities)]]
    for seed in ours.index:
        rows.append([f"ours, seed {seed}", *(f"{ours.loc[seed, q]:.5f} {where.loc[seed, q]:>6}" for q in quantities)])
    rows.append(["ours within TRL's range", *(f"{(where[q] == 'within').sum()} of {n}" for q in quantities)])
    note = (
        f"If both follow one law, each lies outside with probability 2 / {n + 1}: about {2 * n / (n + 1):.1f} of {n}."
    )
    print_table(console, f"The last of {runs['steps'].max()} steps", ("", *quantities), rows, note)


class Record:
    """The completions, weights and scalars that `trl_step.py --record` wrote."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.logged: list[dict[str, float]] = json.loads(file.metadata()["logged"])


class Replay(StepTimes):
    """Puts the recorded rollouts in the place of sampled ones, and notes the weights after each step."""

    def __init__(self, record: Record) -> None:
        super().__init__([keys.KL, keys.REWARD])
        self.record, self.weights = record, []

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.sampling, self.decoder = pl_module.engine.sampling, pl_module.engine.decoder
        pl_module.engine = self

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        super().on_train_batch_end(trainer)
        self.weights.append(flat_weights(pl_module.policy))

    def generate(self, policy: LanguageModel, prompts: PromptBatch, group_size: int, seed: int, step: int) -> Rollout:
        """Return what TRL sampled in this step, in the place of `RolloutEngine.generate`."""
        parts = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        prompt_ids, prompt_mask, ids, mask = (self.record.tensors[f"{step}/{name}"] for name in parts)
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
            statistics = policy.completion_statistics(rollout, 1.0)  # the temperature of all workloads
        return replace(rollout, old_logprobs=statistics.logprobs)


def flat_weights(policy: LanguageModel) -> Tensor:
    """Return all weights in the order of their names, as in the record."""
    return torch.cat([weights.detach().flatten() for _, weights in sorted(policy.model.named_parameters())]).clone()


def replayed(work: Workload, record: Record) -> pd.DataFrame:
    """Train on the recorded completions; return for each step how far the updates differ, and KL and reward of both."""
    replay = Replay(record)
    train(work, len(record.logged), 0, replay)
    start, rows = record.tensors["start/weights"], []
    for step, (theirs, ours) in enumerate(zip(record.logged, replay.scalars, strict=True)):
        moved = record.tensors[f"{step}/weights"] - start
        difference = float((replay.weights[step] - start - moved).norm() / moved.norm())
        rows.append([step + 1, difference, theirs["kl"], ours[keys.KL], theirs["reward"], ours[keys.REWARD]])
    columns = ["step", "update: ours from TRL's", "KL, TRL", "KL, ours", "reward, TRL", "reward, ours"]
    return pd.DataFrame(rows, columns=columns)


def replay_seeds(arguments: argparse.Namespace, trl: System, folder: Path) -> pd.DataFrame:
    """Let TRL train with each seed and train on its completions; return the last step of each seed, of one seed all."""
    frames = []
    for seed in range(arguments.seed, arguments.seed + arguments.replay):
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "record.safetensors"
            trl.run(folder, f"--record={path}", f"--steps={arguments.steps}", f"--seed={seed}")
            found = replayed(read_workload(folder), Record(path))
        frames.append((found if arguments.replay == 1 else found.tail(1)).assign(seed=seed))
    return pd.concat(frames).set_index("seed").reset_index()


def run(arguments: argparse.Namespace) -> None:
    """Run both systems in turn, print the table and write the CSV."""
    out, progress = consoles()
    trl, versions = trl_system(arguments.trl_python)
    ours = System(OURS, sys.executable, "training_step.py", (f"--decoder={arguments.decoder}",))
    names = ["short"] if arguments.learning or arguments.replay else arguments.workloads
    for name in names:
        progress.print(write_workload(WORKLOADS / name, NAMED[name]))
    out.print(machine(arguments.threads), f"TRL's Python: {versions}", f"trained on: {training_device()}", sep="\n")
    if arguments.replay:
        quiet()
        table = replay_seeds(arguments, trl, WORKLOADS / "short")
        rows = [
            [str(seed), str(k), f"{d:.1e}", *(f"{x:.5f}" for x in rest)] for _, seed, k, d, *rest in table.itertuples()
        ]
        note = "Update: how far all weights have come since the start; the difference as a share of TRL's."
        print_table(out, "The same completions, trained on by TRL and by this project", list(table), rows, note)
    else:
        seeds = range(arguments.seed, arguments.seed + (arguments.learning or 1))
        rounds = range(1, 2 if arguments.learning else arguments.rounds + 1)
        found = []
        for number, name, seed, system in itertools.product(rounds, names, seeds, (trl, ours)):
            found.append(system.measure(name, number, seed, arguments.steps, arguments.threads))
            seconds = duration(found[-1]["median_step_seconds"])
            progress.print(f"round {number}, {name}, seed {seed}, {system.name}: {seconds} a step")
        table = pd.DataFrame(found)
        (print_learning if arguments.learning else print_comparison)(out, table)
    out.print(write_table(table, output_path("against_trl")))


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0; 1 where a run failed; 2 for arguments or files that do not do."""
    parser = argparse.ArgumentParser(prog="against_trl.py", description="Compare training steps with TRL's.")
    parser.add_argument("--trl-python", type=Path, required=True, metavar="PATH", help="a Python that has TRL")
    parser.add_argument("--workloads", nargs="+", choices=NAMED, default=BY_DEFAULT, help=f"default: {BY_DEFAULT}")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each on each workload (default: 3)")
    parser.add_argument("--steps", type=int, default=12, help="training steps of a run (default: 12)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--learning", type=int, metavar="N", help="compare what N seeds learn instead of the times")
    parser.add_argument("--replay", type=int, metavar="N", help="train on what TRL sampled with N seeds")
    parser.add_argument("--decoder", choices=DECODERS, default="compiled", help="ours (default: compiled)")
    least = LEAST | {"rounds": 1, "learning": 2, "replay": 1}
    return run_command(parser, run, argv, least=least, refused=(UserError,), failed=(RunFailed,))


if __name__ == "__main__":
    sys.exit(main())
