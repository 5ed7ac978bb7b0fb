import _thread
import re
import threading
import time
from pathlib import Path

import pytest
from synthetic_runs import ramp, run_folder, write_run, write_study

from analysis import watching
from grpovi_lightning.cli import main


def test_a_watched_report_is_written_anew_when_a_run_comes_and_ends_with_status_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watching, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(watching, "_REST", 0)
    study = write_study(tmp_path / "study", {"a": {1: ramp(50)}}, {})
    index = study / "report" / "index.html"

    def grow_then_stop() -> None:
        wait_for(lambda: index.is_file())
        time.sleep(0.2)  # some looks at runs that have not grown
        write_run(run_folder(study, "b", 1), ramp(60), seed=1)
        wait_for(lambda: "arms/b/seed_1" in index.read_text(encoding="utf-8"))
        _thread.interrupt_main()

    thread = threading.Thread(target=grow_then_stop)
    thread.start()
    assert main(["report", str(study), "--watch"]) == 0
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    expected = re.compile(rf"\d\d:\d\d:\d\d [12] runs?, [12] of them counts?: {index}")
    assert lines and all(expected.fullmatch(line) for line in lines)
    assert "1 run," in lines[0]


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_folder_that_cannot_be_watched_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path / "nowhere"), "--watch"]) == 2
    assert "nowhere: no such folder; expected a study or a folder of runs" in capsys.readouterr().err
