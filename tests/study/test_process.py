import json
import os
import sys
from dataclasses import replace

import pytest
import torch

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.checkpoint_folder import write_folder
from grpovi_lightning.study.process import Orphan, Run, last_lines, launch, passed_over, stop, usable_checkpoint


@pytest.fixture
def run(tmp_path):
    return Run("a", tmp_path / "run", (), (), tmp_path / "locks" / "a", seed=1)


def test_a_checkpoint_written_by_torch_is_usable_unless_it_was_cut_short(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert usable_checkpoint(tmp_path) is None
    checkpoint.parent.mkdir()
    torch.save({"weights": torch.zeros(1000)}, checkpoint)
    assert usable_checkpoint(tmp_path) == checkpoint
    whole = checkpoint.read_bytes()
    for length in (0, len(whole) // 2, len(whole) - 1):
        checkpoint.write_bytes(whole[:length])
        assert usable_checkpoint(tmp_path) is None


def test_the_whole_checkpoint_before_a_cut_one_is_used_and_that_is_said(run):
    folder = run.folder / "checkpoints"
    folder.mkdir(parents=True)
    for step in (2, 4):
        torch.save({"weights": torch.zeros(1000)}, folder / f"step={step}.ckpt")
        os.utime(folder / f"step={step}.ckpt", (step, step))
    (folder / "last.ckpt").symlink_to("step=4.ckpt")
    assert usable_checkpoint(run.folder) == folder / "last.ckpt" and passed_over(run.folder) is None
    (folder / "step=4.ckpt").write_bytes((folder / "step=4.ckpt").read_bytes()[:-30])
    said = f"{folder / 'last.ckpt'} was cut short; the run continues from step=2.ckpt"
    process = launch(run, [sys.executable, "-c", "import sys; print(sys.argv[1:])"])
    assert process.exit_status == 0 and process.news() == [said]
    lines = (run.folder / "process.log").read_text().splitlines()
    assert lines[0].endswith(f"grpovi --ckpt_path {folder / 'step=2.ckpt'}") and lines[1] == said
    (folder / "step=2.ckpt").unlink()
    assert passed_over(run.folder).endswith("was cut short; the run begins anew, because no other is whole")


def test_a_folder_that_lacks_a_part_is_passed_over_and_that_is_said(run):
    folder = run.folder / "checkpoints"
    for step in (2, 4):
        write_folder(folder / f"step={step}.ckpt", {"global_step": step}, {"a": torch.ones(2)})
        os.utime(folder / f"step={step}.ckpt", (step, step))
    (folder / "last.ckpt").symlink_to("step=4.ckpt")
    assert usable_checkpoint(run.folder) == folder / "last.ckpt" and passed_over(run.folder) is None
    (folder / "step=4.ckpt" / "part_1_of_1.safetensors").unlink()
    assert usable_checkpoint(run.folder) == folder / "step=2.ckpt"
    said = "is a folder that does not hold the parts of one checkpoint; the run continues from step=2.ckpt"
    assert passed_over(run.folder) == f"{folder / 'last.ckpt'} {said}"


def test_threads_of_the_numerical_libraries_are_fixed(run):
    code = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    seen = run.lock.parent.parent / "environment.json"
    process = launch(replace(run, threads=3), [sys.executable, "-c", code, str(seen)])
    assert process.exit_status == 0
    environment = json.loads(seen.read_text())
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    assert [environment[name] for name in names] == ["3"] * 4


def test_the_log_keeps_every_attempt_with_its_command(run, tmp_path):
    checkpoint = run.folder / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({}, checkpoint)
    for word in ("first", "second"):
        code = f"import sys; print('{word}'); print('and an error', file=sys.stderr)"
        process = launch(run, [sys.executable, "-c", code])
        assert process.exit_status == 0
    lines = (run.folder / "process.log").read_text().splitlines()
    assert [lines[1], lines[2], lines[4], lines[5]] == ["first", "and an error", "second", "and an error"]
    assert lines[3].endswith(f"] grpovi --ckpt_path {checkpoint}")
    assert last_lines(run.folder / "process.log", 9, process.log_start) == ["second", "and an error"]


def test_a_run_on_which_a_process_still_works_is_not_started_twice(run):
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = launch(run, sleeper)
    orphan = Orphan(run)
    assert orphan.alive()
    with pytest.raises(UserError, match="a process still works on"):
        launch(run, sleeper)
    stop([orphan], patience=5)
    assert not orphan.alive()
    assert not process.alive()
    assert process.exit_status != 0


def test_a_run_that_was_never_started_is_no_orphan(run):
    assert not Orphan(run).alive()


def test_a_progress_bar_s_carriage_returns_do_not_make_one_endless_line(tmp_path):
    (tmp_path / "log").write_bytes(b"1%\r2%\r3%\n\n  Error: \xff\n")
    assert last_lines(tmp_path / "log", 2) == ["3%", "Error: \ufffd"]
