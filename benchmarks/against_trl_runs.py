"""One run of TRL or of this project, in a process of its own, so that its peak memory is its own."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

from step_result import KEYS

TRL, OURS = "trl", "grpovi-lightning"


class RunFailed(RuntimeError):
    """A run ended early or printed no result; the message is one line."""


class System(NamedTuple):
    """Who trains: the name in its JSON line, its Python, its script, and arguments that only this script has."""

    name: str
    python: str
    script: str
    arguments: tuple[str, ...] = ()


class Run(NamedTuple):
    """One run, one line of the CSV; README.md says what the columns mean."""

    workload: str
    round: int
    system: str
    seed: int
    steps: int
    threads: int
    median_step_seconds: float
    completion_tokens_per_second: float
    peak_rss_mb: int
    kl_last: float
    reward_last: float


def run_once(system: System, folder: Path, number: int, seed: int, steps: int, threads: int) -> Run:
    """Runs the system's script on the workload in `folder`, in round `number`.

    Raises:
        RunFailed: it ended with an error, or its last line is not the JSON of a step script.
    """
    settings = [f"--steps={steps}", f"--threads={threads}", f"--seed={seed}"]
    command = [system.python, system.script, str(folder), *settings, *system.arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunFailed(f"{system.name}: exit status {done.returncode}: {last}; the command was {shlex.join(command)}")
    line = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not (isinstance(found, dict) and found.get("system") == system.name and set(KEYS) <= found.keys()):
        raise RunFailed(f"{system.name}: got the last line {line!r}, expected the JSON of {system.script}")
    return Run(folder.name, number, system.name, seed, steps, threads, *(found[key] for key in KEYS))
