"""Tables beside the main one: the adjustment, the reward model, the rise in gold reward, step 0, the configs."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from analysis.curves import curves_of
from analysis.run_log import log_files, read_scalars
from analysis.tables import groups, rows_where
from grpovi_lightning import metric_keys
from grpovi_lightning.run_record.layout import CONFIG_FILE, RecordError
from grpovi_lightning.run_record.pairing import SeedCheck, by_seed
from grpovi_lightning.run_record.status import RunRecord, require_status

PAIR_ACCURACY = metric_keys.held_out(metric_keys.PAIR_ACCURACY)
ADJUSTMENT_COLUMNS = {
    "variance before": metric_keys.ADJUSTMENT_VARIANCE_BEFORE,
    "variance after": metric_keys.ADJUSTMENT_VARIANCE_AFTER,
    "unweighted before": metric_keys.ADJUSTMENT_UNIFORM_VARIANCE_BEFORE,
    "unweighted after": metric_keys.ADJUSTMENT_UNIFORM_VARIANCE_AFTER,
    "groups changed": metric_keys.ADJUSTMENT_FRAC_CHANGED,
    "zero variance": metric_keys.ADJUSTMENT_FRAC_ZERO_VARIANCE,
    "effective weights": metric_keys.ADJUSTMENT_EFFECTIVE_WEIGHTS,
    "range lower": metric_keys.ADJUSTMENT_RANGE_LOWER,
    "range upper": metric_keys.ADJUSTMENT_RANGE_UPPER,
    "advantage cosine": metric_keys.ADJUSTMENT_ADVANTAGE_COSINE,
    "sign flips": metric_keys.ADJUSTMENT_SIGN_FLIPS,
}
Config = Mapping[str, str]
"""Dotted key of config.yaml -> its value as text."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast as the one of Python, where PyYAML was built with it; a study has a config for each run."""
_LAUNCH_KEYS = ("config", "ckpt_path", "seed_everything")
_RECORDED = ("device", "world_size", "threads", "torch")
_FACTS = ("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.precision", "trainer.max_steps")


def adjustment_means(runs: pd.DataFrame) -> pd.DataFrame:
    """Average the scalars of the adjustment, or of the variance increase not applied, over training, then over seeds.

    Args:
        runs: Rows of the runs that count.

    Returns:
        One row an arm (index), the columns of `ADJUSTMENT_COLUMNS`; NaN where an arm did not log one.
    """
    means = {}
    for arm in sorted(set(runs["arm"])):
        own = rows_where(runs, runs["arm"] == arm)
        means[arm] = {heading: _mean_over_seeds(own, metric) for heading, metric in ADJUSTMENT_COLUMNS.items()}
    return pd.DataFrame.from_dict(means, orient="index", columns=list(ADJUSTMENT_COLUMNS))


def _mean_over_seeds(runs: pd.DataFrame, metric: str) -> float:
    of_runs = [float(np.mean(group["value"])) for _, group in groups(rows_where(runs, runs["metric"] == metric), "run")]
    return float(np.mean(of_runs)) if of_runs else math.nan


@dataclass(frozen=True)
class PairAccuracy:
    """Share of held-out pairs that the reward model orders as the labels do, or why it is not known."""

    run: str
    value: float | None
    step: int | None
    problem: str | None


def pair_accuracy(study_dir: Path, run: str) -> PairAccuracy:
    """Return the last held-out pair accuracy that `run` logged.

    Args:
        study_dir: The study.
        run: Run directory relative to it, one of its prepare stages.
    """
    folder = study_dir / run
    if not log_files(folder):
        return PairAccuracy(run, None, None, "there are no log files in that folder")
    scalars = read_scalars(folder)
    found = [item for item in scalars.scalars if item.metric == PAIR_ACCURACY]
    if not found:
        return PairAccuracy(run, None, None, scalars.damage or f"the run did not log {PAIR_ACCURACY}")
    return PairAccuracy(run, found[-1].value, found[-1].step, None)


@dataclass(frozen=True)
class Rise:
    """How far the metric rose in one run, in units of its spread over the initial policy's completions."""

    arm: str
    seed: int
    first: float
    last: float
    initial_std: float

    @property
    def in_stds(self) -> float:
        """(last - first) / initial_std."""
        return (self.last - self.first) / self.initial_std


def spread_key(metric: str) -> str | None:
    """Return the tag of the per-completion standard deviation that belongs to a `rewards/<name>/mean`, else None.

    >>> spread_key("eval/rewards/gold/mean"), spread_key("eval/reward")
    ('eval/rewards/gold/std', None)
    """
    is_component = metric.removeprefix(metric_keys.EVAL_PREFIX).startswith("rewards/")
    return f"{metric.removesuffix('/mean')}/std" if is_component and metric.endswith("/mean") else None


def rises(runs: pd.DataFrame, metric: str) -> list[Rise]:
    """Return the rise of every run that counts and logged its initial spread; none where the metric has no spread."""
    std_key = spread_key(metric)
    if std_key is None:
        return []
    stds = curves_of(runs, std_key)
    return [
        Rise(arm, seed, curve.first, curve.last, stds[arm][seed].first)
        for arm, seeds in curves_of(runs, metric).items()
        for seed, curve in seeds.items()
        if seed in stds.get(arm, {}) and stds[arm][seed].first > 0
    ]


def recorded_by_seed(status: pd.DataFrame, what: str, tasks: Mapping[str, str] | None = None) -> list[SeedCheck]:
    """Compare what the runs of each seed recorded; of each seed and task where arms have tasks.

    Args:
        status: As from `load_status`.
        what: `first_rollout` or `held_out`.
        tasks: Arm -> its task.
    """
    known = rows_where(status, status["seed"].notna())
    by_task: dict[str | None, list[tuple[int, str, str | None]]] = {}
    for arm, seed, run, digest in zip(*(known[column] for column in ("arm", "seed", "run", what)), strict=True):
        by_task.setdefault((tasks or {}).get(str(arm)), []).append((int(seed), run, digest))
    return [check for runs in by_task.values() for check in by_seed(runs)]


def read_config(folder: Path) -> Config:
    """Return a run's config.yaml, flattened to dotted keys; empty where it is missing or no plain YAML mapping."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return _flatten(content) if isinstance(content, dict) else {}


def _flatten(value: object, prefix: str = "") -> dict[str, str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    flat: dict[str, str] = {}
    for key, item in items:
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat or {prefix: str(value)}


def config_differences(arm: Path, baseline: Path) -> list[tuple[str, str, str]] | None:
    """Compare the configurations of two run directories.

    Returns:
        (key, arm's value, baseline's value), "" where one has no such key; without keys that only say where the run
        lies or how it was started. None where one of the configs cannot be read.
    """
    ours, theirs = read_config(arm), read_config(baseline)
    if not ours or not theirs:
        return None
    differences = []
    for key in sorted(set(ours) | set(theirs)):
        left, right = ours.get(key, ""), theirs.get(key, "")
        launched = key.split(".")[0] in _LAUNCH_KEYS
        if not launched and placeless(left, arm) != placeless(right, baseline):
            differences.append((key, left, right))
    return differences


def placeless(value: str, folder: Path) -> str:
    """Return `value` without the part of a path that names the run: its folder and the one above."""
    return value.replace(f"{folder.parent.name}/{folder.name}", "<run>").replace(str(folder), "<run>")


def environment(study_dir: Path, configs: Mapping[str, Config]) -> dict[str, str]:
    """Return facts about machine and trainer from status.json and config.yaml: the distinct values over all runs."""
    values: dict[str, set[str]] = {}
    for run, config in configs.items():
        record = RunRecord()
        with suppress(RecordError):  # the list of runs says what is wrong with the file
            record = require_status(study_dir / run)
        for key in _RECORDED:
            if getattr(record, key) is not None:
                values.setdefault(key, set()).add(str(getattr(record, key)))
        for key, value in config.items():
            if key in _FACTS or key.startswith("environment."):
                values.setdefault(key, set()).add(value)
    return {key: ", ".join(sorted(found)) for key, found in sorted(values.items())}
