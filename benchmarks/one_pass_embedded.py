"""Compare one pass on a policy's features with a fit: python benchmarks/one_pass_embedded.py STUDY; see README.md."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import one_pass
import pandas as pd
import torch
from command import run_command
from one_pass import COLUMNS, Arm, Problem, Row
from reporting import consoles, duration, machine, output_path, print_table, write_table
from torch import Tensor

from grpovi_lightning.data.reading import read_table
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards import online
from grpovi_lightning.rewards.sequences import text_rows

FIT = "MLE, one fit"


def arms() -> list[Arm]:
    """Return every method with every setting."""
    found = [Arm(FIT, f"lam {lam:g}", partial(online.MaximumLikelihood, lam=lam)) for lam in (0.1, 1.0, 10.0)]
    for lam in (0.1, 1.0, 10.0):
        found.append(Arm(one_pass.ONE_PASS, f"lam {lam:g}", partial(online.OnlineMirrorDescent, lam=lam)))
    found.append(Arm(one_pass.IMPLICIT, "lam 1", partial(online.ImplicitMirrorDescent, lam=1.0)))
    for rate in (0.001, 0.003, 0.01, 0.03, 0.1):
        make = partial(online.StochasticGradientDescent, rate=online.ConstantRate(rate))
        found.append(Arm(one_pass.CONSTANT, f"rate {rate:g}", make))
    return found


def differences(features: online.FeatureModel, file: Path, limit: int | None) -> Tensor:
    """Return phi(chosen) - phi(rejected) of a preference table, [n, D] float64."""
    table = read_table(str(file), ["prompt", "chosen", "rejected"])
    prompts, *answers = (table.column(name)[:limit] for name in ("prompt", "chosen", "rejected"))
    chosen, rejected = (features(text_rows(features.tokenizer, prompts, texts)) for texts in answers)
    return (chosen - rejected).double()


def learn(arm: Arm, z: Tensor, held_out: Tensor, order: int) -> Row:
    """Learn the pairs in one order, in rounds, or with `FIT` all at once; return the last round with the whole time."""
    mixed = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(order))]
    task = Problem(mixed, torch.ones(len(z)).double(), held_out, torch.ones(len(held_out)).double(), torch.empty(0))
    rounds = list(one_pass.learn(arm, task, order, len(z) if arm.name == FIT else one_pass.ROUND))
    return *rounds[-1][:4], sum(row[4] for row in rounds), *rounds[-1][5:]


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the table and write the CSV."""
    out, progress = consoles()
    prepare = arguments.study / "prepare"
    features = online.FeatureModel(str(prepare / "sft" / "model"), [online.LastToken(), online.MeanOverTokens()])
    features.check()
    torch.set_num_threads(1)
    features.load()
    z = differences(features, prepare / "task" / "preferences.jsonl", arguments.pairs)
    held_out = differences(features, prepare / "task" / "preferences_validation.jsonl", None)
    sizes = f"{len(z):,} pairs in {arguments.orders} random orders, {len(held_out):,} held out; {features.dim} features"
    out.print(machine(threads=1), f"{sizes} of {features.path}", sep="\n")
    rows: list[Row] = []
    for arm in arms():
        progress.print(f"{arm.name}, {arm.setting}")
        # A fit to all pairs at once does not depend on their order.
        rows += [learn(arm, z, held_out, order) for order in range(1 if arm.name == FIT else arguments.orders)]
    frame, table = pd.DataFrame(rows, columns=COLUMNS), []
    for arm in arms():
        own = frame[(frame["arm"] == arm.name) & (frame["setting"] == arm.setting)]
        accuracy, seconds, loss = (np.asarray(own[name]) for name in ("accuracy", "seconds", "cross_entropy"))
        line = [f"{accuracy.mean():.2%}", f"{accuracy.min():.2%} to {accuracy.max():.2%}"]
        table.append([arm.name, arm.setting, *line, f"{loss.mean():.4f}", duration(seconds.mean())])
    columns = ("", "", "accuracy", "lowest to highest", "cross-entropy", "time")
    note = "Means over the orders. Time: the processor's, to learn all pairs, one thread."
    print_table(out, "Held-out pairs", columns, table, note)
    out.print(write_table(frame, output_path("one_pass_embedded")))


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0; 1 where a fit does not converge; 2 for arguments or files that do not do."""
    parser = argparse.ArgumentParser(prog="one_pass_embedded.py", description="One pass on a policy's features.")
    parser.add_argument("study", type=Path, help="a study with prepare/task and prepare/sft")
    parser.add_argument("--pairs", type=int, help="only the first so many training pairs")
    parser.add_argument("--orders", type=int, default=5, help="random orders of the pairs (default: 5)")
    least = {"pairs": 1, "orders": 1}
    return run_command(parser, run, argv, least=least, refused=(UserError,), failed=(TrainingError,))


if __name__ == "__main__":
    sys.exit(main())
