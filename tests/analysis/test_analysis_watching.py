import re
import time
from pathlib import Path

import pytest
from synthetic_runs import ramp, run_folder, write_run, write_study

from grpovi_lightning.cli import main


def test_a_watched_report_is_written_anew_when_a_run_comes_and_ends_with_status_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    study = write_study(tmp_path / "study", {"a": {1: ramp(50)}}, {})
    rests = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        if len(rests) == 2:  # after a look at runs that had not grown
            write_run(run_folder(study, "b", 1), ramp(60), seed=1)
        if len(rests) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", rest)
    assert main(["report", str(study), "--watch"]) == 0
    index = study / "report" / "index.html"
    assert "arms/b/seed_1" in index.read_text(encoding="utf-8") and min(rests) >= 10.0
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"\d\d:\d\d:\d\d 1 run, 1 of them counts: {index}", first)
    assert re.fullmatch(rf"\d\d:\d\d:\d\d 2 runs, 2 of them count: {index}", second)


def test_a_folder_that_cannot_be_watched_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path / "nowhere"), "--watch"]) == 2
    assert "nowhere: no such folder; expected a study or a folder of runs" in capsys.readouterr().err
