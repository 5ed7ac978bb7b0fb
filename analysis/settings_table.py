"""Every setting of every arm, not only those in which arms differ: a key of config.yaml a row, an arm a column."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.diagnostics import Config, placeless
from analysis.study import Analysis
from analysis.tables import groups

BETWEEN_SEEDS = " | "


@dataclass(frozen=True)
class SettingsTable:
    """The settings of the arms of a report.

    Attributes:
        arms: Names of the arms that have a config, in the order of the report.
        rows: Key of config.yaml, flattened -> one value an arm, "" where the arm has no such key. Where its seeds
            differ, their values in the order of the seeds, between `BETWEEN_SEEDS`. "<run>" stands for the run's own
            folder.
        unread: Runs without a config.yaml that can be read.
    """

    arms: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    unread: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """Return one row a key: `key`, then one column an arm."""
        return pd.DataFrame([(key, *values) for key, values in self.rows.items()], columns=["key", *self.arms])


def settings_table(analysis: Analysis, read: Mapping[str, Config]) -> SettingsTable:
    """Arrange the settings of every run that the report lists, those that do not count included.

    `read`: run -> its config, as from `read_config`.
    """
    values: dict[str, dict[str, list[str]]] = {}
    unread: list[str] = []
    runs = {arm: table.sort_values("seed")["run"] for (arm,), table in groups(analysis.status, "arm")}
    arms = [arm for arm in analysis.arms if arm in runs]
    for arm in arms:
        configs = {run: read[run] for run in runs[arm]}
        unread += [run for run, config in configs.items() if not config]
        configs = {run: config for run, config in configs.items() if config}
        for key in sorted({key for config in configs.values() for key in config}):
            found = [placeless(config.get(key, ""), analysis.path / run) for run, config in configs.items()]
            values.setdefault(key, {})[arm] = found
    known = tuple(arm for arm in arms if any(arm in of for of in values.values()))
    rows = {key: tuple(_joined(of.get(arm, [""])) for arm in known) for key, of in sorted(values.items())}
    return SettingsTable(known, rows, tuple(unread))


def _joined(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else BETWEEN_SEEDS.join(values)
