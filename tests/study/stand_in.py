"""Keeps the contract of `python -m grpovi_lightning.cli fit|task|sample|relabel`, for process handling; trains nothing.

Keys of its config files: steps, step_seconds, rollout, fail_at, crash_at, crash_output, kill_fresh_at, leave_at,
ignore_sigint, ignore_sigterm, worker. Every process appends what it saw to the file named by STAND_IN_JOURNAL.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import yaml


def journal(**entry):
    with open(os.environ["STAND_IN_JOURNAL"], "a") as handle:
        handle.write(json.dumps({"pid": os.getpid(), "time": time.monotonic(), **entry}) + "\n")


def write_status(folder, **content):
    partial = folder / "status.partial"
    partial.write_text(json.dumps(content))
    partial.replace(folder / "status.json")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["fit", "task", "sample", "relabel"])
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--output")
    parser.add_argument("--study_dir")
    parser.add_argument("--trainer.default_root_dir", dest="root")
    parser.add_argument("--seed_everything", type=int)
    parser.add_argument("--ckpt_path")
    arguments, values = parser.parse_known_args()
    config = {}
    for name in arguments.config:
        config |= yaml.safe_load(Path(name).read_text())
    for key, value in zip(values[::2], values[1::2], strict=True):
        config[key.removeprefix("--")] = yaml.safe_load(value)
    folder = Path(arguments.root or arguments.output)
    run = f"{folder.parent.name}/{folder.name}"
    journal(event="start", run=run, arguments=sys.argv[1:], threads=os.environ.get("OMP_NUM_THREADS"))
    if config.get("ignore_sigint"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if config.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if config.get("worker"):
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        journal(event="worker", run=run, worker=worker.pid)
    if arguments.command == "task":
        if any(folder.iterdir()):
            sys.exit(f"grpovi: error: {folder} holds other files")
        if config.get("fail_at") is not None:
            sys.exit("grpovi: error: the task was asked to fail")
        (folder / "task.json").write_text("{}")
        journal(event="end", run=run)
        return
    if arguments.command in ("sample", "relabel"):
        sample(config, folder, run)
        return
    train(arguments, config, folder, run)


def sample(config, folder, run):
    """Writes a part at a time, and leaves the parts that are there."""
    for part in range(3):
        file = folder / f"part_{part}"
        if part == config.get("kill_fresh_at") and not file.exists():
            file.write_text("made before the kill")
            os.kill(os.getpid(), signal.SIGKILL)
        if not file.exists():
            file.write_text("made afterwards")
    journal(event="end", run=run)


def train(arguments, config, folder, run):
    checkpoint = folder / "checkpoints" / "last.ckpt"
    steps = config.get("steps", 3)
    first = 0
    if arguments.ckpt_path:
        with zipfile.ZipFile(arguments.ckpt_path) as archive:
            first = int(archive.read("step"))
    common = {
        "seed": arguments.seed_everything,
        "max_steps": steps,
        "error": None,
        "warnings": [],
        "first_rollout": config.get("rollout", "same").format(seed=arguments.seed_everything),
        "pid": os.getpid(),
    }
    step = first
    try:
        while step < steps:
            if step == config.get("crash_at"):
                print(config.get("crash_output", "ValueError: exploded"), flush=True)
                os._exit(3)
            write_status(folder, state="running", step=step, **common)
            if step == config.get("fail_at"):
                write_status(folder, state="failed", step=step, **common | {"error": "loss is not finite"})
                sys.exit(1)
            if step == config.get("kill_fresh_at") and not arguments.ckpt_path:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == config.get("leave_at"):
                return
            time.sleep(config.get("step_seconds", 0.0))
            step += 1
            checkpoint.parent.mkdir(exist_ok=True)
            with zipfile.ZipFile(checkpoint.with_suffix(".new"), "w") as archive:
                archive.writestr("step", str(step))
            checkpoint.with_suffix(".new").replace(checkpoint)
    except KeyboardInterrupt:
        journal(event="sigint", run=run)
        write_status(folder, state="interrupted", step=step, **common)
        sys.exit(130)
    (folder / "model").mkdir(exist_ok=True)
    write_status(folder, state="finished", step=step, **common)
    journal(event="end", run=run, steps_done=step - first)


if __name__ == "__main__":
    main()
