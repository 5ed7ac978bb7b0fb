"""Never two processes in one run folder."""

import multiprocessing
import os
import signal

import pytest
from helpers.commands import refusal
from helpers.own_input import run_config, write_yaml

from grpovi_lightning.cli import main
from grpovi_lightning.run_record.layout import RecordError
from grpovi_lightning.run_record.lock import held_lock


def _hold(folder, ready):
    with held_lock(folder):
        ready.send(os.getpid())
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """(folder, a process that works in it)."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(tmp_path / "run", theirs), daemon=True)
    process.start()
    assert ours.recv() == process.pid
    yield tmp_path / "run", process
    process.kill()
    process.join()


def test_a_folder_in_which_a_process_works_is_refused_by_its_number(holder):
    folder, process = holder
    said = f"run folder {folder}: process {process.pid} works in it; end that one"
    with pytest.raises(RecordError, match=said), held_lock(folder):
        pass
    assert (folder / ".lock").read_text() == str(process.pid)


def test_a_process_that_was_killed_leaves_no_lock(holder):
    folder, process = holder
    process.kill()
    process.join()
    with held_lock(folder):
        assert (folder / ".lock").read_text() == str(os.getpid())


def test_a_second_run_in_the_same_folder_is_refused_and_changes_nothing(holder, inputs, monkeypatch, capsys):
    folder, process = holder
    monkeypatch.chdir(inputs)
    monkeypatch.syspath_prepend(inputs)
    config = run_config(inputs, folder)
    config["trainer"]["max_steps"] = config["trainer"]["val_check_interval"] = 1
    file = write_yaml(folder.parent / "run.yaml", config)
    assert f"process {process.pid} works in it" in refusal(capsys, "fit", "--config", file)
    assert [entry.name for entry in folder.iterdir()] == [".lock"]
    process.kill()
    process.join()
    assert main(["fit", "--config", file]) == 0
