"""Runs whose numbers are known, written as real TensorBoard event files in the layout of a study."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

GOLD = "eval/rewards/gold/mean"
GOLD_STD = "eval/rewards/gold/std"
STEPS = tuple(range(0, 101, 10))
IDENTITY = "IdentityAdjustment"
INCREASE = "VarianceIncrease"

Scalars = Mapping[str, Mapping[int, float]]
"""metric -> step -> value"""


def write_events(
    folder: Path, scalars: Scalars, *, wall_time: float = 1_700_000_000.0, name: str = "0000000001"
) -> Path:
    """One event file; every value gets `wall_time`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{name}.host.1.0"
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString())
        for metric, values in scalars.items():
            for step, value in values.items():
                summary = Summary(value=[Summary.Value(tag=metric, simple_value=value)])
                writer.write(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())
    return path


def write_status(folder: Path, **fields: object) -> None:
    """A status.json as a finished run of 100 steps leaves it, with `fields` changed."""
    folder.mkdir(parents=True, exist_ok=True)
    status = {
        "schema": 2,
        "state": "finished",
        "seed": 1,
        "step": 100,
        "max_steps": 100,
        "error": None,
        "warnings": [],
        "first_rollout": "ab" * 32,
        "pid": 1,
        "started": "2026-01-01T00:00:00+00:00",
        "updated": "2026-01-01T00:01:00+00:00",
        "wall_seconds": 60.0,
        "stage": "GRPOModule",
        "adjustment": IDENTITY,
        "device": "cpu",
    }
    name = fields.get("adjustment", IDENTITY)
    adjusts = None if name is None else name == INCREASE
    (folder / "status.json").write_text(json.dumps(status | {"adjusts": adjusts} | fields), encoding="utf-8")


def line(start: float, end: float, steps: Sequence[int] = STEPS) -> dict[int, float]:
    """A curve that goes straight from `start` to `end`."""
    return dict(zip(steps, np.linspace(start, end, len(steps)).tolist(), strict=True))


def ramp(at: float, steps: Sequence[int] = STEPS, height: float = 1.0) -> dict[int, float]:
    """A curve that goes straight from 0 at step 0 to `height` at step `at` and stays there."""
    return {step: height * min(step / at, 1.0) for step in steps}


def cost(per_step: float, steps: Sequence[int] = STEPS) -> dict[int, float]:
    """A cumulative cost."""
    return {step: per_step * step for step in steps}


def write_run(
    folder: Path,
    gold: Mapping[int, float],
    *,
    seed: int,
    adjustment: str = IDENTITY,
    more: Scalars | None = None,
    **status: object,
) -> Path:
    """A finished run with the curve `gold` and costs of 100 tokens and 2 seconds a step."""
    steps = list(gold)
    scalars = {GOLD: gold, "eval/num_tokens": cost(100, steps), "eval/train_seconds": cost(2, steps)} | dict(more or {})
    write_events(folder, scalars)
    write_status(folder, seed=seed, adjustment=adjustment, **status)
    return folder


def write_study(
    root: Path, arms: Mapping[str, Mapping[int, Mapping[int, float]]], baselines: Mapping[str, str], **report: object
) -> Path:
    """study.yaml and one finished run for every arm and seed: arm -> seed -> curve."""
    write_study_yaml(root, arms, baselines, sorted({seed for seeds in arms.values() for seed in seeds}), **report)
    for arm, seeds in arms.items():
        for seed, gold in seeds.items():
            adjustment = INCREASE if arm in baselines else IDENTITY
            write_run(run_folder(root, arm, seed), gold, seed=seed, adjustment=adjustment)
    return root


def write_study_yaml(
    root: Path, arms: Iterable[str], baselines: Mapping[str, str], seeds: Sequence[int], **report: object
) -> None:
    """Only study.yaml."""
    root.mkdir(parents=True, exist_ok=True)
    study = {
        "name": root.name,
        "seeds": list(seeds),
        "prepare": {"reward_model": {"configs": ["reward_model.yaml"]}},
        "arms": {
            arm: {"configs": ["arm.yaml"]} | ({"baseline": baselines[arm]} if arm in baselines else {}) for arm in arms
        },
        "report": {"metric": GOLD, "target_fraction": 0.9} | report,
    }
    (root / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")


def run_folder(root: Path, arm: str, seed: int) -> Path:
    """Where a study keeps a run."""
    return root / "arms" / arm / f"seed_{seed}"


def frame(arms: Mapping[str, Mapping[int, Mapping[int, float]]], metric: str = GOLD) -> pd.DataFrame:
    """A table as from `load_runs`, without files: arm -> seed -> curve."""
    rows = [
        (arm, seed, f"{arm}/seed_{seed}", metric, step, value, 0.0)
        for arm, seeds in arms.items()
        for seed, curve in seeds.items()
        for step, value in curve.items()
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "run", "metric", "step", "value", "wall_time"])
    return table.astype({"seed": "Int64", "step": "int64", "value": "float64"})
