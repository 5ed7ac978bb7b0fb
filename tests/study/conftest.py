import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpovi_lightning.run_record.choice import Choice, Score, choose
from grpovi_lightning.run_record.layout import run_folder
from grpovi_lightning.run_record.looks import read_looks
from grpovi_lightning.run_record.status import read_status
from grpovi_lightning.run_record.study import parse_study
from grpovi_lightning.study import Services, compare

HERE = Path(__file__).parent


class Bench:
    """A study file with its configs in a temporary folder, and the journal of the processes it started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.output = root / "runs"
        self.folder = self.output / "small"
        self.journal_file = root / "journal.jsonl"
        self.study_file = root / "study.yaml"
        self.preflighted: list[list[str]] = []
        self.reported: list[Path] = []
        self.scores: dict[str, float] = {}
        self.decided_at = 0

    def write(self, **changes: Any) -> Path:
        study = {
            "name": "small",
            "seeds": [1, 2],
            "prepare": {"task": {"command": "task", "configs": ["task.yaml"]}, "sft": {"configs": ["sft.yaml"]}},
            "arms": {
                "plain": {"configs": ["arm.yaml"]},
                "other": {"configs": ["arm.yaml", "other.yaml"], "baseline": "plain"},
            },
        } | changes
        study = {key: value for key, value in study.items() if value is not None}
        for name in ("task.yaml", "sft.yaml", "arm.yaml", "other.yaml"):
            if not (self.root / name).exists():
                self.config(name, note=name)
        self.study_file.write_text(yaml.safe_dump(study, sort_keys=False))
        return self.study_file

    def config(self, name: str, **content: Any) -> None:
        (self.root / name).write_text(yaml.safe_dump(content))

    def compare(self, **options: Any) -> int:
        names = [field.name for field in fields(Services)]
        services = replace(self.services, **{name: options.pop(name) for name in names if name in options})
        defaults: dict[str, Any] = {
            "output": self.output,
            "jobs": 2,
            "program": [sys.executable, str(HERE / "stand_in.py")],
        }
        return compare(self.study_file, services, **defaults | options)

    @property
    def services(self) -> Services:
        return Services(self.preflighted.append, lambda _: [], self.choose, self.undecided, self.reported.append)

    def undecided(self, folder: Path) -> list[str]:
        """Decide all at the look at `decided_at` seeds, and nothing before."""
        looks = read_looks(folder)
        assert looks is not None
        return [] if len(looks.seen) == self.decided_at else ["Is other faster than plain?"]

    def choose(self, folder: Path) -> Choice:
        """Choose by the scores that a test gave to points; a run that did not finish cannot be chosen."""
        study = parse_study(yaml.safe_load((folder / "study.yaml").read_text()), "study.yaml", resolved=True)
        scores = {}
        for arm in [arm for arm in study.arms if arm.point is not None]:
            areas = {seed: self.scores.get(arm.name, 0.0) for seed in study.tuning_seeds}
            states = {seed: read_status(folder / run_folder(arm.name, seed)) for seed in study.tuning_seeds}
            bad = [seed for seed, status in states.items() if status is None or status.state != "finished"]
            scores[arm.name] = Score(areas, f"seed {bad[0]} did not finish" if bad else None)
        return choose(study, "reward", (0.0, 3.0), scores)

    def start(self, jobs: int = 2, patience: float = 10.0, launcher: str = "local") -> subprocess.Popen[str]:
        """`compare` in a process of its own; a launcher other than `local` has the settings of `launcher.yaml`."""
        driver = [sys.executable, str(HERE / "compare_driver.py"), str(self.study_file), str(self.output)]
        settings = [] if launcher == "local" else [str(self.root / "launcher.yaml")]
        return subprocess.Popen(
            [*driver, str(jobs), str(patience), launcher, *settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def journal(self, event: str | None = None) -> list[dict[str, Any]]:
        if not self.journal_file.exists():
            return []
        # A process killed in the middle of a line leaves part of it; only whole lines count.
        lines = [line for line in self.journal_file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [entry for entry in map(json.loads, lines) if event in (None, entry["event"])]

    def started(self) -> list[str]:
        return [entry["run"] for entry in self.journal("start")]

    def pids(self) -> list[int]:
        return [entry["pid"] for entry in self.journal("start")] + [e["worker"] for e in self.journal("worker")]

    def run_dir(self, arm: str, seed: int) -> Path:
        return self.folder / "arms" / arm / f"seed_{seed}"

    def status(self, arm: str, seed: int) -> dict[str, Any]:
        return json.loads((self.run_dir(arm, seed) / "status.json").read_text())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setenv("STAND_IN_JOURNAL", str(made.journal_file))
    return made


@pytest.fixture
def tree() -> Callable[[Path], dict[str, str]]:
    """Hash of every file below a folder."""

    def hashes(folder: Path) -> dict[str, str]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return hashes
