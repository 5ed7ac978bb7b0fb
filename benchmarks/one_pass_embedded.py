"""One pass on a policy's features against a fit: python benchmarks/one_pass_embedded.py STUDY; see README.md."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from reporting import checked_output, consoles, default_output, duration, machine, titled_table, write_rows
from torch import Tensor
from torch.nn.functional import softplus

from grpovi_lightning.data.tables import read_table
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards.online import (
    ConstantRate,
    FeatureModel,
    ImplicitMirrorDescent,
    LastToken,
    MaximumLikelihood,
    MeanOverTokens,
    OnlineMirrorDescent,
    PreferenceEstimator,
    StochasticGradientDescent,
)
from grpovi_lightning.rewards.sequences import text_rows

COLUMNS = ["prompt", "chosen", "rejected"]
ROUND = 32
"""Pairs a round of the methods that see each pair once."""
FIT = "MLE, one fit"
ALL = None
"""As many pairs a round as there are."""


class Arm(NamedTuple):
    """A method with its setting."""

    method: str
    setting: str
    make: Callable[[int], PreferenceEstimator]
    pairs_per_round: int | None = ROUND


class Row(NamedTuple):
    """One arm on one order of the pairs, a line of the CSV."""

    method: str
    setting: str
    order: int
    pairs: int
    seconds: float
    accuracy: float
    cross_entropy: float


def arms() -> list[Arm]:
    """Every method with every setting."""
    found = [Arm(FIT, f"lam {lam:g}", partial(MaximumLikelihood, lam=lam), ALL) for lam in (0.1, 1.0, 10.0)]
    found += [Arm("one-pass OMD", f"lam {lam:g}", partial(OnlineMirrorDescent, lam=lam)) for lam in (0.1, 1.0, 10.0)]
    found.append(Arm("implicit OMD", "lam 1", partial(ImplicitMirrorDescent, lam=1.0)))
    rates = (0.001, 0.003, 0.01, 0.03, 0.1)
    return found + [
        Arm("SGD, constant", f"rate {rate:g}", partial(StochasticGradientDescent, rate=ConstantRate(rate)))
        for rate in rates
    ]


def differences(features: FeatureModel, file: Path, limit: int | None) -> Tensor:
    """phi(chosen) - phi(rejected) of a preference table, [n, D] float64."""
    table = read_table(str(file), COLUMNS)
    rows = table[:limit] if limit is not None else table[:]
    sides = [features(text_rows(features.tokenizer, rows["prompt"], rows[side])) for side in ("chosen", "rejected")]
    return (sides[0] - sides[1]).double()


def learn(arm: Arm, z: Tensor, held_out: Tensor, order: int) -> Row:
    """One arm on the pairs in one order."""
    estimator = arm.make(z.shape[1])
    mixed = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(order))]
    began = time.process_time()
    for part in mixed.split(arm.pairs_per_round or len(mixed)):
        estimator.update(part, torch.ones(len(part)))
    seconds = time.process_time() - began
    margins = estimator.reward(held_out)
    accuracy = (margins > 0).double().mean().item()
    return Row(arm.method, arm.setting, order, len(z), seconds, accuracy, softplus(-margins).mean().item())


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the table and writes the CSV."""
    out, progress = consoles()
    output = checked_output(
        arguments.output or default_output("one_pass_embedded", ".csv"), "table", ",".join(Row._fields)
    )
    prepare = arguments.study / "prepare"
    features = FeatureModel(str(prepare / "sft" / "model"), [LastToken(), MeanOverTokens()])
    features.check()
    torch.set_num_threads(1)
    features.load()
    progress.print("features of the pairs")
    z, held_out = (
        differences(features, prepare / "task" / f"preferences{part}.jsonl", arguments.pairs if not part else None)
        for part in ("", "_validation")
    )
    out.print(
        machine(threads=1),
        f"{len(z):,} pairs in {arguments.orders} random orders, {len(held_out):,} held out; {features.dim} features of "
        f"{features.path}",
        sep="\n",
    )
    rows = []
    for arm in arms():
        progress.print(f"{arm.method}, {arm.setting}")
        # A fit to all pairs at once does not depend on their order.
        orders = 1 if arm.pairs_per_round is ALL else arguments.orders
        rows += [learn(arm, z, held_out, order) for order in range(orders)]
    table = titled_table("Held-out pairs", "", "", "accuracy", "lowest to highest", "cross-entropy", "time")
    for arm in arms():
        own = [row for row in rows if (row.method, row.setting) == (arm.method, arm.setting)]
        accuracy = np.array([row.accuracy for row in own])
        table.add_row(
            arm.method,
            arm.setting,
            f"{accuracy.mean():.2%}",
            f"{accuracy.min():.2%} to {accuracy.max():.2%}",
            f"{np.mean([row.cross_entropy for row in own]):.4f}",
            duration(float(np.mean([row.seconds for row in own]))),
        )
    out.print(table, "Means over the orders. Time: the processor's, to learn all pairs, one thread.", sep="\n")
    out.print(write_rows(output, Row._fields, rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 where a fit does not converge; 2 for arguments or files that do not do."""
    parser = argparse.ArgumentParser(description="One pass on a policy's features against a fit to all pairs.")
    parser.add_argument("study", type=Path, help="a study with prepare/task and prepare/sft, such as runs/quickstart")
    parser.add_argument("--pairs", type=int, default=None, help="only the first so many training pairs")
    parser.add_argument("--orders", type=int, default=5, help="random orders of the pairs (default: 5)")
    parser.add_argument(
        "--output", type=Path, help="the CSV; default runs/benchmarks/one_pass_embedded_<date>_<time>.csv"
    )
    arguments = parser.parse_args(argv)
    try:
        for name, value in (("--pairs", arguments.pairs), ("--orders", arguments.orders)):
            if value is not None and value < 1:
                raise UserError(f"{name}: got {value}, expected at least 1")
        run(arguments)
    except (TrainingError, UserError, OSError) as error:
        print(f"one_pass_embedded.py: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
