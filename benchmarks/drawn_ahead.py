"""What drawing completions while the policy is trained buys: python benchmarks/drawn_ahead.py DIR; see README.md."""

import argparse
import os
import secrets
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from command import InputError, run_command
from reporting import consoles, duration, machine, output_path, print_table, write_table
from training_step import StepTimes, quiet, train
from workload import read_workload

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.allocator import keep_large_blocks
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rollout import VLLMDecoder
from grpovi_lightning.rollout.vllm import Engine, OneStepAhead, VLLMServer

TOKEN = "GRPOVI_VLLM_TOKEN"
SCALARS = (keys.STEP_TIME_DECODE, keys.REWARD, keys.SAMPLING_LOGP_DIFFERENCE_MEAN)
ENGINES: dict[str, type[Engine]] = {"VLLMServer": VLLMServer, "OneStepAhead": OneStepAhead}


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


def run(arguments: argparse.Namespace) -> None:
    """Train with either engine in turn, print the table and write it."""
    keep_large_blocks()
    work = read_workload(arguments.directory)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise InputError(f"got {len(cores)} core, expected two: one for the server, one for the training")
    os.environ.setdefault(TOKEN, secrets.token_hex(16))
    os.sched_setaffinity(0, cores[:1])
    torch.set_num_threads(1)
    quiet()
    console, progress = consoles()
    rows = []
    with serving(arguments.vllm_python, work.folder / "model", cores[1]) as server:
        for number in range(arguments.rounds):
            for name in ENGINES:
                engine = OneStepAhead(server) if name == "OneStepAhead" else server
                times = StepTimes(SCALARS)
                train(work, arguments.steps, 1, times, VLLMDecoder(engine))
                seconds = statistics.median(end - begin for begin, end in pairwise(times.ends))
                waited = statistics.median(step[keys.STEP_TIME_DECODE] for step in times.scalars[1:])
                apart = statistics.median(step[keys.SAMPLING_LOGP_DIFFERENCE_MEAN] for step in times.scalars[1:])
                rows.append([name, number, seconds, waited, apart, times.scalars[-1][keys.REWARD]])
                progress.print(f"round {number}, {name}: {seconds:.2f} s a step")
    columns = ["engine", "round", "median_step_seconds", "median_decode_seconds", "logp_difference", "reward_last"]
    frame = pd.DataFrame(rows, columns=columns)
    console.print(machine(1))
    medians = frame.groupby("engine", sort=False).median()
    base = medians.loc["VLLMServer", "median_step_seconds"]
    shown = [
        [str(name), duration(row.iloc[1]), duration(row.iloc[2]), f"{base / row.iloc[1]:.2f}", f"{row.iloc[3]:.4f}"]
        for name, row in medians.iterrows()
    ]
    titles = ["", "a step", "of it, waiting for completions", "times as fast", "difference of log-probabilities"]
    print_table(console, f"{work.folder.name}: server and training on one core each", titles, shown)
    print(write_table(frame, output_path("drawn_ahead")))


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status, 2 for arguments or a workload that do not do."""
    parser = argparse.ArgumentParser(prog="drawn_ahead.py", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="a workload, as write_workload.py writes it")
    parser.add_argument(
        "--vllm-python", type=Path, default=Path(".venv-vllm/bin/python"), help="a Python that has vLLM"
    )
    parser.add_argument("--steps", type=int, default=6, help="training steps, the first of which is not timed")
    parser.add_argument("--rounds", type=int, default=3, help="runs with each engine")
    least = {"steps": 3, "rounds": 1}
    return run_command(parser, run, argv, least=least, refused=(UserError,), failed=(TrainingError,))


if __name__ == "__main__":
    sys.exit(main())
