"""Read workloads and print what a run on one gave. Standard library only: trl_step.py does so without this project.

A workload is a folder with a checkpoint and its tokenizer, prompts, a reward function and the sizes.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

from command import InputError

PARTS = ("model", "prompts.jsonl", "reward.py", "workload.json")
KEYS = ("median_step_seconds", "completion_tokens_per_second", "peak_rss_mb", "kl_last", "reward_last")
LEAST = {"steps": 2, "threads": 1, "seed": 0}  # smallest values of the arguments of `step_parser`


@dataclass(frozen=True)
class Workload:
    """What a benchmark trains on; `reward` is called as TRL calls reward functions."""

    folder: Path
    reward: Callable[..., list[float | None]]
    prompts_per_step: int
    group_size: int
    completion: int  # the longest, tokens
    beta: float
    learning_rate: float
    temperature: float
    loss: str  # TRL's name
    tokens_at_once: int  # of a forward pass of this project's update; TRL has no such setting
    num_iterations: int  # updates on each rollout: TRL calls each a step, this project all together, so only 1 compares


def read_workload(folder: Path) -> Workload:
    """Read a folder as `write_workload.py` writes it; raise `InputError` if a part or a setting is missing."""
    missing = [part for part in PARTS if not (folder / part).exists()]
    if missing:
        raise InputError(f"{folder}: got no {missing[0]}, expected a workload; write one with write_workload.py")
    spec = importlib.util.spec_from_file_location("workload_reward", folder / "reward.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = [field.name for field in fields(Workload) if field.name not in ("folder", "reward")]
    try:
        found = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
        return Workload(folder=folder, reward=module.reward, **{name: found[name] for name in names})
    except (ValueError, KeyError) as error:
        raise InputError(f"{folder / 'workload.json'}: got {error!r}, expected JSON with {', '.join(names)}") from None


def step_parser(script: str, description: str) -> argparse.ArgumentParser:
    """Return a parser of `directory`, `steps`, `threads` and `seed`."""
    parser = argparse.ArgumentParser(prog=script, description=description)
    parser.add_argument("directory", type=Path, metavar="DIR", help="a workload, as write_workload.py writes it")
    parser.add_argument("--steps", type=int, default=12, help="training steps, the first of which is not timed")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling and of the prompts' order")
    return parser


def step_result(
    system: str, work: Workload, ends: Sequence[float], mean_length: float, kl: float | None, reward: float
) -> str:
    """Return the JSON line of a run.

    `ends` says when each step ended, in seconds: a step lasts from the end of the one before to its own, so that data,
    metrics and bookkeeping count, and the first step, which warms up, does not. The last three are of the last step:
    tokens of a completion, nats, and the mean reward.
    """
    median = statistics.median(end - begin for begin, end in pairwise(ends))
    tokens = mean_length * work.prompts_per_step * work.group_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; on macOS bytes
    peak_mb = peak // (1024 * 1024 if sys.platform == "darwin" else 1024)
    values = (round(median, 4), round(tokens / median, 1), peak_mb, kl, reward)
    return json.dumps({"system": system, **dict(zip(KEYS, values, strict=True))})
