"""Time and memory of reading a large study and of its report: python benchmarks/load_runs.py; see README.md."""

import argparse
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pandas as pd
import yaml
from command import run_command
from reporting import consoles, duration, machine, output_path, print_table, write_table
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]  generated code
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]  generated code

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.run_record.layout import CONFIG_FILE, STUDY_FILE, run_folder
from grpovi_lightning.run_record.status import RunRecord, State, write_status

SEEDS = 10
"""Runs of an arm; the first arm is the baseline of the others."""
HELD_OUT = (keys.rewards_mean("gold"), keys.rewards_std("gold"), keys.KL, keys.NUM_TOKENS, keys.TRAIN_SECONDS)
TRAINING = (
    *(keys.REWARD, keys.REWARD_STD, keys.KL, keys.ENTROPY, keys.LOSS, keys.GRAD_NORM, keys.COMPLETIONS_MEAN_LENGTH),
    *(keys.NUM_TOKENS, keys.TRAIN_SECONDS, keys.ADJUSTMENT_VARIANCE_BEFORE, keys.ADJUSTMENT_VARIANCE_AFTER),
    *(keys.STEP_TIME, *keys.STEP_PHASES),
)


def metric_names(count: int) -> list[str]:
    """Return so many scalars: those that a report reads first, then rewards of further names."""
    names = [*map(keys.held_out, HELD_OUT), *TRAINING]
    return [*names, *(keys.rewards_mean(f"component_{number}") for number in range(count - len(names)))][:count]


def write_study(folder: Path, runs: int, steps: int, scalars: int) -> int:
    """Write finished runs as `grpovi compare` leaves them; return the bytes of their event files."""
    arms = [f"arm_{number}" for number in range(-(-runs // SEEDS))]
    study = {
        "name": "large",
        "seeds": list(range(1, SEEDS + 1)),
        "prepare": {},
        "arms": {arm: {"configs": ["arm.yaml"]} | ({"baseline": arms[0]} if arm != arms[0] else {}) for arm in arms},
        "report": {"metric": keys.held_out(HELD_OUT[0])},
    }
    folder.mkdir(parents=True)
    (folder / STUDY_FILE).write_text(yaml.safe_dump(study, sort_keys=False))
    size = 0
    for number in range(runs):
        arm, seed = number // SEEDS, number % SEEDS + 1
        place = folder / run_folder(arms[arm], seed)
        place.mkdir(parents=True)
        write_status(place, RunRecord(State.FINISHED, seed, steps, steps, adjustment="IdentityAdjustment"))
        groups = {f"group_{group}": {f"setting_{key}": group * key for key in range(20)} for group in range(10)}
        (place / CONFIG_FILE).write_text(yaml.safe_dump(groups | {"seed_everything": seed, "rate": 1e-4 * arm}))
        size += write_events(place / f"events.out.tfevents.{number}", metric_names(scalars), steps, (arm, seed))
    return size


def write_events(path: Path, metrics: list[str], steps: int, seed: tuple[int, int]) -> int:
    """Write curves that rise with noise as one event file, an event a value as Lightning writes them."""
    noise = np.random.default_rng(seed).normal(0.0, 0.01, (steps, len(metrics)))
    with path.open("wb") as file:
        _write_record(file.write, Event(wall_time=0.0, file_version="brain.Event:2"))
        for step in range(steps):
            rise = 1 - math.exp(-3 * step / steps)
            for metric, scatter in zip(metrics, noise[step].tolist(), strict=True):
                # What a run spent so far counts up.
                value = 10.0 * step if metric.endswith((keys.NUM_TOKENS, keys.TRAIN_SECONDS)) else rise + scatter
                summary = Summary(value=[Summary.Value(tag=metric, simple_value=value)])
                _write_record(file.write, Event(wall_time=1.7e9 + step, step=step, summary=summary))
    return path.stat().st_size


def _write_record(write: Callable[[bytes], object], event: Event) -> None:
    """Write one record; TensorBoard's own writer takes twenty times as long for its checksums."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    for part in (length, data):
        crc = google_crc32c.value(part)
        write(part + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF))


def phases(folder: Path) -> Iterator[dict[str, object]]:
    """Yield one row a phase, each of a fresh process; the first load leaves what the others find."""
    script = Path(__file__).with_name("load_phase.py")
    places = [str(script.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    for name, phase in (("first load", "load"), ("cached load", "load"), ("report", "report")):
        printed = subprocess.run(
            [sys.executable, script, phase, folder],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        yield {"phase": name} | json.loads(printed)


def run(arguments: argparse.Namespace) -> None:
    """Write the study, measure, print, write."""
    out, progress = consoles()
    sizes = (4, 50, 60) if arguments.quick else (arguments.runs, arguments.steps, arguments.scalars)
    out.print(machine(1))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "large"
        size = write_study(folder, *sizes)
        progress.print(f"{size / 1e6:.0f} MB of event files: written")
        rows = pd.DataFrame(phases(folder)).assign(**dict(zip(("runs", "steps", "scalars"), sizes, strict=True)))
    title = "{} runs x {:,} steps x {} scalars, {:.0f} MB of event files".format(*sizes, size / 1e6)
    shown = [
        [row["phase"], duration(row["seconds"]), duration(row["processor_seconds"]), f"{row['peak_rss_mb']:,} MiB"]
        for row in rows.to_dict("records")
    ]
    print_table(out, title, ["", "time", "processor time", "peak memory"], shown)
    out.print(write_table(rows, output_path("load_runs")))


def main(argv: list[str] | None = None) -> int:
    """Parse arguments and run; return the exit status."""
    parser = argparse.ArgumentParser(prog="load_runs.py", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="runs of the study (100)")
    parser.add_argument("--steps", type=int, default=1_000, help="steps at which each run logs all scalars (1,000)")
    parser.add_argument("--scalars", type=int, default=60, help="scalars that a run logs (60)")
    parser.add_argument("--quick", action="store_true", help="4 runs of 50 steps, seconds")
    return run_command(parser, run, argv, least={"runs": 1, "steps": 2, "scalars": 20})


if __name__ == "__main__":
    sys.exit(main())
