"""The numbers of a model card: held-out scalars of a run, also as the hub's results, and its study's verdicts."""

import math
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult

from analysis.run_config import RunConfig
from analysis.run_log import log_files, read_scalars
from analysis.settings import DEFAULT_METRICS
from analysis.study import analyse
from analysis.tables import rows_where
from analysis.verdict import Verdict
from grpovi_lightning import metric_keys
from grpovi_lightning.run_record.layout import ARMS_FOLDER, STUDY_FILE, folder_seed
from grpovi_lightning.run_record.publication import public
from grpovi_lightning.run_record.status import RunRecord

_FRACTION = "data.init_args.preparation.held_out_fraction"
_PLACE = {"dataset_config": "name", "dataset_split": "split", "dataset_revision": "revision"}
"""Field of a result on the hub -> setting of a table's source."""
_CLOCKS = (metric_keys.NUM_TOKENS, metric_keys.TRAIN_SECONDS)


@dataclass(frozen=True)
class HeldOutRow:
    """A held-out scalar at the first and the last step at which the run logged it."""

    metric: str
    first_step: int
    first: float
    last_step: int
    last: float


@dataclass(frozen=True)
class StudyPart:
    """What a study says of the arm of a run.

    Attributes:
        reason: Why the run does not count there, or None.
        counts: Number of runs that count, of each arm that the verdicts are about.
        verdicts: Those that compare the arm, with its baseline or with others.
    """

    name: str
    metric: str
    arm: str
    seed: int
    reason: str | None
    counts: tuple[tuple[str, int], ...]
    verdicts: tuple[Verdict, ...]


def held_out(folder: Path, record: RunRecord) -> tuple[list[HeldOutRow], str]:
    """Return the held-out scalars of a run, those that reports compare first; and a sentence where some are missing."""
    if not log_files(folder):
        loggers = f"; it logged with {', '.join(record.loggers)}" if record.loggers else ""
        return [], f"No held-out values: the run has no TensorBoard or CSV log{loggers}."
    scalars = read_scalars(folder)
    if scalars.damage is not None:
        return [], f"No held-out values: the log is damaged ({public(scalars.damage)})."
    points: dict[str, list[tuple[int, float]]] = {}
    for scalar in scalars.scalars:
        if scalar.metric.startswith(metric_keys.EVAL_PREFIX) and scalar.metric.rpartition("/")[2] not in _CLOCKS:
            points.setdefault(scalar.metric, []).append((scalar.step, scalar.value))
    first = {metric: place for place, metric in enumerate(DEFAULT_METRICS)}
    order = sorted(points, key=lambda metric: (first.get(metric, len(first)), metric))
    rows = [HeldOutRow(metric, *points[metric][0], *points[metric][-1]) for metric in order]
    if scalars.torn_tail is not None:
        return rows, "The log ends inside a record, so that its last values are missing."
    return rows, "" if rows else "No held-out values: the run logged none."


def hub_results(rows: list[HeldOutRow], config: RunConfig, task: str | None) -> list[EvalResult]:
    """Return the last held-out rewards for the hub's table of results, where the held-out rows are a data set there."""
    tables = config.tables()
    held_out_tables = [table for table in tables if table.name == "validation"] or (
        [table for table in tables if table.name == "train"] if config.get(_FRACTION) else []
    )
    if not held_out_tables or task is None:
        return []
    by_set = {"": held_out_tables[0]} | {table.held_out_set: table for table in held_out_tables}
    results = []
    for row in rows:
        table = by_set.get(metric_keys.set_in(row.metric))
        if table is None or table.hub_name is None or not math.isfinite(row.last) or not _is_result(row.metric):
            continue
        named = {name: table.source.get(setting) for name, setting in _PLACE.items()}
        results.append(
            EvalResult(task, table.hub_name, table.hub_name, row.metric, row.last, metric_name=row.metric, **named)
        )
    return results


def _is_result(metric: str) -> bool:
    """Tell whether a held-out scalar says how good a model is: rewards, pass@k, accuracy of pairs."""
    key = metric.removeprefix(metric_keys.EVAL_PREFIX)
    key = key.removeprefix(f"{metric_keys.set_in(metric)}/").removeprefix(metric_keys.GREEDY_PREFIX)
    is_mean = key.startswith(metric_keys.rewards("")) and key.endswith("/mean")
    return is_mean or key.startswith("pass_at_") or key in (metric_keys.REWARD, metric_keys.PAIR_ACCURACY)


def study_part(folder: Path) -> StudyPart | None:
    """Return what the study around a run says of its arm; None for a run that is no part of one.

    Raises:
        ReportError: The study cannot be read.
    """
    place = folder.resolve()
    arm, seed = place.parent.name, folder_seed(place.name)
    arms, root = place.parent.parent, place.parent.parent.parent
    if seed is None or arms.name != ARMS_FOLDER or not (root / STUDY_FILE).is_file():
        return None
    found = analyse(root)
    verdicts = tuple(verdict for verdict in found.verdicts if arm in (verdict.arm, verdict.baseline))
    compared = {arm, *(name for verdict in verdicts for name in (verdict.arm, verdict.baseline))}
    counts = tuple((each.arm, len(each.seeds)) for each in found.comparisons if each.arm in compared)
    run = place.relative_to(root).as_posix()
    mine = rows_where(found.status, found.status["run"] == run)
    if len(mine):
        (reason,) = mine["reason"]
    else:
        (reason,) = rows_where(found.tuning, found.tuning["run"] == run)["reason"]
        reason = reason or "it was run to choose a point, and judges nothing"
    settings = found.settings
    return StudyPart(settings.name, settings.metric, arm, seed, public(reason), counts, verdicts)
