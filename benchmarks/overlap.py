"""What overlapping rollout, rewards and update buys: python benchmarks/overlap.py DIR; see README.md."""

import argparse
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from command import InputError, run_command
from reporting import consoles, duration, machine, output_path, print_table, write_table
from training_step import StepTimes, quiet, train
from workload import Workload, read_workload

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.allocator import keep_large_blocks
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards import RewardFunction
from grpovi_lightning.rollout import Decoder, GroupDecoder, VLLMDecoder
from grpovi_lightning.rollout.vllm import OneStepAhead, VLLMServer

TOKEN = "GRPOVI_VLLM_TOKEN"
SCALARS = (keys.STEP_TIME_DECODE, keys.STEP_TIME_REWARD, keys.SAMPLING_LOGP_DIFFERENCE_MEAN, keys.REWARD)
COLUMNS = ("median_step_seconds", "decode_seconds", "reward_seconds", "logp_difference", "reward_last")
CALL_SECONDS, AT_A_TIME = 0.1, 8

Case = Callable[[], tuple[Decoder, RewardFunction]]


@contextmanager
def serving(python: Path, model: Path, core: int) -> Iterator[VLLMServer]:
    """Yield a server in a process of its own, on one core."""
    command = [python, "-m", "grpovi_lightning.rollout.vllm", model, "--port", "0", "--kv_cache_gb", "1"]
    command += ["--options", '{"enforce_eager": true, "max_model_len": 512}']
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        ["taskset", "--cpu-list", str(core), *map(str, command)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        if "http" not in said:
            raise InputError(f"--vllm-python: got {python}, whose server ended; see docs/vllm.md for one that has vLLM")
        yield VLLMServer(said.split()[-1])
    finally:
        process.terminate()
        process.wait()


def measure(work: Workload, cases: dict[str, Case], arguments: argparse.Namespace) -> None:
    """Train with each case in turn, print the table and write it."""
    console, progress = consoles()
    rows = []
    for number in range(arguments.rounds):
        for name, case in cases.items():
            times = StepTimes(SCALARS)
            train(work, arguments.steps, 1, times, *case())
            seconds = statistics.median(end - begin for begin, end in pairwise(times.ends))
            medians = [statistics.median(step[scalar] for step in times.scalars[1:]) for scalar in SCALARS[:-1]]
            rows.append([name, number, seconds, *medians, times.scalars[-1][keys.REWARD]])
            progress.print(f"round {number}, {name}: {duration(seconds)} a step")
    frame = pd.DataFrame(rows, columns=["case", "round", *COLUMNS])
    found = frame.groupby("case", sort=False).median()
    base = found["median_step_seconds"].iloc[0]
    shown = [
        [str(name), *(duration(value) for value in row.iloc[1:4]), f"{base / row.iloc[1]:.2f}", f"{row.iloc[4]:.4f}"]
        for name, row in found.iterrows()
    ]
    titles = ["", "a step", "of it decoding", "of it rewards", "times as fast", "sampler from trainer, nats"]
    console.print(machine(1))
    print_table(console, work.folder.name, titles, shown)
    print(write_table(frame, output_path("overlap")))


def beside_the_update(work: Workload, server: VLLMServer) -> dict[str, Case]:
    """Return a server that draws before the update, and one that draws beside it."""
    return {
        "VLLMServer": lambda: (VLLMDecoder(server), RewardFunction(work.reward)),
        "OneStepAhead": lambda: (VLLMDecoder(OneStepAhead(server)), RewardFunction(work.reward)),
    }


def beside_the_rollout(work: Workload) -> dict[str, Case]:
    """Return a function that waits for an answer about each completion: one by one, at a time, and early."""

    def waits(prompts: list[str], completions: list[str], **columns: object) -> list[float | None]:
        time.sleep(CALL_SECONDS)
        return work.reward(prompts=prompts, completions=completions, **columns)

    def waits_for_all(prompts: list[str], completions: list[str], trainer_state: object) -> list[float | None]:
        return waits(prompts, completions)

    return {
        "one by one": lambda: (GroupDecoder(), RewardFunction(waits_for_all, max_concurrency=1)),
        f"{AT_A_TIME} at a time": lambda: (GroupDecoder(), RewardFunction(waits_for_all, max_concurrency=AT_A_TIME)),
        "and early": lambda: (GroupDecoder(), RewardFunction(waits, max_concurrency=AT_A_TIME)),
    }


def run(arguments: argparse.Namespace) -> None:
    """Measure what was asked for, on one core for each process."""
    keep_large_blocks()
    work = read_workload(arguments.directory)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise InputError(f"got {len(cores)} core, expected two: one for the server, one for the training")
    os.sched_setaffinity(0, cores[:1])
    torch.set_num_threads(1)
    quiet()
    if arguments.rewards:
        measure(work, beside_the_rollout(work), arguments)
        return
    os.environ.setdefault(TOKEN, secrets.token_hex(16))
    with serving(arguments.vllm_python, work.folder / "model", cores[1]) as server:
        measure(work, beside_the_update(work, server), arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status, 2 for arguments or a workload that do not do."""
    parser = argparse.ArgumentParser(prog="overlap.py", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="a workload, as write_workload.py writes it")
    parser.add_argument("--rewards", action="store_true", help="rewards beside the rollout, without a server")
    python = Path(".venv-vllm/bin/python")
    parser.add_argument("--vllm-python", type=Path, default=python, help="a Python that has vLLM")
    parser.add_argument("--steps", type=int, default=6, help="training steps, the first of which is not timed")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case")
    least = {"steps": 3, "rounds": 1}
    return run_command(parser, run, argv, least=least, refused=(UserError,), failed=(TrainingError,))


if __name__ == "__main__":
    sys.exit(main())
