"""What training_step.py and trl_step.py share: their arguments and the line they print. Standard library only."""

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from workload import InputError, Workload

KEYS = ("median_step_seconds", "completion_tokens_per_second", "peak_rss_mb", "kl_last", "reward_last")


def step_arguments(
    description: str, argv: Sequence[str] | None = None, decoders: Sequence[str] = (), output: bool = False
) -> argparse.Namespace:
    """`directory`, `steps`, `threads` and `seed`; `decoder` where there are several, the first by default; `output`.

    Raises:
        InputError: a number is too small.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("directory", type=Path, metavar="DIR", help="a workload, as write_workload.py writes it")
    parser.add_argument("--steps", type=int, default=12, help="training steps, the first of which is not timed")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling and of the prompts' order")
    if decoders:
        parser.add_argument("--decoder", choices=decoders, default=decoders[0], help=f"default: {decoders[0]}")
    if output:
        parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a new file")
    arguments = parser.parse_args(argv)
    at_least(arguments, steps=2, threads=1, seed=0)
    return arguments


def at_least(arguments: argparse.Namespace, **smallest: int) -> None:
    """Raises `InputError` for an argument below its smallest value; None is none given."""
    for name, least in smallest.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}: got {value}, expected at least {least}")


def step_result(
    system: str, work: Workload, ends: Sequence[float], mean_length: float, kl: float | None, reward: float
) -> str:
    """The JSON line of a run.

    Args:
        system: who trained.
        work: what was trained on.
        ends: when each step ended, seconds; at least two. A step lasts from the end of the one before to its own, so
            that data, metrics and bookkeeping count, and the first step, which warms up, does not.
        mean_length: mean number of tokens of the completions of the last step.
        kl: of the last step, nats.
        reward: mean of the last step.
    """
    median = statistics.median(end - begin for begin, end in pairwise(ends))
    tokens = mean_length * work.prompts_per_step * work.group_size
    values = (round(median, 4), round(tokens / median, 1), peak_rss_mb(), kl, reward)
    return json.dumps({"system": system, **dict(zip(KEYS, values, strict=True))})


def peak_rss_mb() -> int:
    """Largest resident memory of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; on macOS bytes
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)
