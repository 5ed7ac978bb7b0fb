"""Runs of TRL and of this project -> the figures that are compared, and how they are printed."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from against_trl_runs import OURS, TRL, Run
from reporting import duration, titled_table
from rich.console import Console


class Pair(NamedTuple):
    """A figure of both systems."""

    trl: float
    ours: float

    @property
    def ratio(self) -> float:
        """TRL's over this project's."""
        return self.trl / self.ours


class Comparison(NamedTuple):
    """A workload: medians over the rounds, and the lowest and highest ratio of the step times of one round."""

    workload: str
    seconds: Pair
    lowest: float
    highest: float
    tokens_per_second: Pair
    peak_mb: Pair


class LearningLine(NamedTuple):
    """One quantity: the range of TRL's seeds, and seed -> value of this project's."""

    quantity: str
    lowest: float
    highest: float
    ours: dict[int, float]

    def verdict(self, seed: int) -> str:
        """Where the seed lies: within, below or above TRL's range, whose ends belong to it."""
        value = self.ours[seed]
        return "below" if value < self.lowest else "above" if value > self.highest else "within"


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """One comparison a workload; every round has a run of both systems."""
    comparisons: list[Comparison] = []
    for workload in dict.fromkeys(run.workload for run in runs):
        found = [run for run in runs if run.workload == workload]
        trl, ours = ({run.round: run for run in found if run.system == system} for system in (TRL, OURS))
        assert trl.keys() == ours.keys(), f"{workload}: rounds {list(trl)} of TRL and {list(ours)} of this project"
        ratios = [trl[number].median_step_seconds / ours[number].median_step_seconds for number in trl]

        def medians(name: str, sides: Sequence[dict[int, Run]] = (trl, ours)) -> Pair:
            return Pair(*(median(getattr(run, name) for run in side.values()) for side in sides))

        comparisons.append(
            Comparison(
                workload,
                medians("median_step_seconds"),
                min(ratios),
                max(ratios),
                medians("completion_tokens_per_second"),
                medians("peak_rss_mb"),
            )
        )
    return comparisons


def learning_lines(runs: Sequence[Run]) -> list[LearningLine]:
    """The last step's KL and reward."""
    lines: list[LearningLine] = []
    for quantity in ("kl_last", "reward_last"):
        of_trl = [getattr(run, quantity) for run in runs if run.system == TRL]
        ours = {run.seed: getattr(run, quantity) for run in runs if run.system == OURS}
        lines.append(LearningLine(quantity, min(of_trl), max(of_trl), ours))
    return lines


def print_comparisons(console: Console, comparisons: Sequence[Comparison], rounds: int, steps: int) -> None:
    """One line a workload."""
    columns = ("step\nTRL", "step\nours", "TRL / ours\n(rounds)", "tokens/s\nTRL", "tokens/s\nours")
    memory = ("MiB\nTRL", "MiB\nours", "TRL /\nours")
    table = titled_table("Training steps of TRL's GRPOTrainer and of this project", "workload", *columns, *memory)
    for row in comparisons:
        table.add_row(
            row.workload,
            *(duration(seconds) for seconds in row.seconds),
            f"{row.seconds.ratio:.2f} ({row.lowest:.2f} to {row.highest:.2f})",
            *(f"{tokens:,.0f}" for tokens in row.tokens_per_second),
            *(f"{peak:,.0f}" for peak in row.peak_mb),
            f"{row.peak_mb.ratio:.2f}",
        )
    console.print(
        table,
        f"Medians over {rounds} round(s), the two in turn; the figure of a round is the median over "
        f"{steps - 1} step(s). Ratios are of the medians; in brackets the lowest and "
        "the highest of a round. tokens/s: completion tokens. MiB: the largest resident memory of the process.",
        sep="\n",
    )


def print_learning(console: Console, lines: Sequence[LearningLine], steps: int) -> None:
    """TRL's range, and a line a seed of this project."""
    table = titled_table(f"The last of {steps} steps", "", *(line.quantity for line in lines))
    table.add_row("TRL, lowest to highest", *(f"{line.lowest:.5f} to {line.highest:.5f}" for line in lines))
    seeds = list(lines[0].ours)
    for seed in seeds:
        table.add_row(f"ours, seed {seed}", *(f"{line.ours[seed]:.5f} {line.verdict(seed):>6}" for line in lines))
    counts = [sum(line.verdict(seed) == "within" for seed in seeds) for line in lines]
    table.add_row("ours within TRL's range", *(f"{count} of {len(seeds)}" for count in counts))
    n = len(seeds)
    console.print(
        table,
        f"A value that follows the same law as TRL's {n} lies outside their range with probability 2 / {n + 1}: about "
        f"{2 * n / (n + 1):.1f} of {n} would, were nothing different.",
        sep="\n",
    )
