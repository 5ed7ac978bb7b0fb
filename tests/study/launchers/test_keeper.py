"""The process beside a run on another machine, called in this one."""

import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from grpovi_lightning.run_record.status import RunRecord, State, write_status
from grpovi_lightning.study.launchers.errand import Errand
from grpovi_lightning.study.launchers.keeper import work
from grpovi_lightning.study.launchers.orders import Order, WorkerLostError, installed_versions, revoke, write_order
from grpovi_lightning.study.process import Orphan, Run
from grpovi_lightning.study.record import locked
from grpovi_lightning.study.requests import Requests, clear_requests, launch_folder, request

HOST = socket.gethostname()


@pytest.fixture
def folder(tmp_path):
    """A study's folder in which a compare works, as far as the lock tells."""
    with locked(tmp_path / "study"):
        yield tmp_path / "study"


@pytest.fixture
def order(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("a", folder / "arms" / "a", (), (), folder / ".locks" / "a", seed=1)
    return Order("first", run, ("-c", "import sys; sys.exit(7)"), 5.0, str(tmp_path), installed_versions())


def waits(seconds):
    """Whoever waits for the outcome is there."""
    return False


def test_the_outcome_is_that_of_the_process(order):
    outcome = work(write_order(order), "first", waits)
    assert (outcome.exit_status, outcome.problem) == (7, None)
    log = order.run.log.read_bytes()
    assert log[: outcome.log_start].endswith(b"] grpovi \n") and log[outcome.log_start :] == b""


def test_a_machine_that_does_not_see_the_study_says_so_in_one_line(tmp_path):
    file = tmp_path / "study" / ".locks" / "a.launch" / "order.json"
    outcome = work(file, "first", waits)
    assert outcome.problem == (
        f"{HOST} does not see the study's folder {tmp_path / 'study'}; give --output a folder on a file system that "
        "all machines share, under the same path"
    )


def test_a_machine_on_which_the_lock_of_compare_is_not_held_does_not_begin(order, tmp_path):
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    (elsewhere / ".lock").touch()
    run = replace(order.run, lock=elsewhere / ".locks" / "a")
    outcome = work(write_order(replace(order, run=run)), "first", waits)
    assert outcome.problem.startswith(f"as {HOST} sees it, no compare works in {elsewhere}: it has ended, or locks ")
    assert not order.run.folder.exists()


def test_a_machine_with_other_packages_does_not_begin(order):
    outcome = work(write_order(replace(order, versions=order.versions | {"torch": "0.1"})), "first", waits)
    assert outcome.problem == (
        f"{HOST} has torch {installed_versions()['torch']}, compare has 0.1; all machines need the same environment"
    )


def test_a_machine_that_does_not_see_the_working_folder_says_so(order):
    outcome = work(write_order(replace(order, working_folder="/nowhere")), "first", waits)
    assert f"{HOST} does not see the folder /nowhere, in which compare was started" in outcome.problem


def test_an_order_that_was_replaced_or_revoked_is_not_worked_on(order):
    file = write_order(order)
    for identity in ("another", "first"):
        assert work(file, identity, waits).problem == "another order has taken the place of this one"
        revoke(order.run.lock)
    assert not order.run.folder.exists()


def test_a_run_that_was_stopped_in_its_queue_does_not_begin(order):
    file = write_order(order)
    request(order.run.lock, signal.SIGINT)
    assert work(file, "first", waits).problem == "stopped before it began"
    assert not order.run.folder.exists()


def test_a_run_that_had_finished_when_its_machine_was_lost_is_not_run_again(order):
    write_status(order.run.folder, RunRecord(state=State.FINISHED))
    assert work(write_order(replace(order, retry=1)), "first", waits).exit_status == 0
    assert not order.run.log.exists()


def test_whoever_waits_being_gone_ends_the_run_after_it_has_saved(order, tmp_path):
    seen = tmp_path / "seen"
    code = f"""
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
try:
    pathlib.Path({str(seen)!r}).touch()
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(seen)!r}).write_text("saved")
"""
    outcome = work(write_order(replace(order, arguments=("-c", code))), "first", lambda seconds: seen.exists())
    assert (outcome.exit_status, seen.read_text()) == (0, "saved")


def test_each_request_is_passed_on_once_and_a_line_that_is_being_written_waits(order):
    lock = order.run.lock
    launch_folder(lock).mkdir(parents=True)
    clear_requests(lock)
    requests = Requests(lock)
    assert requests.new() == []
    request(lock, signal.SIGINT)
    assert (requests.new(), requests.new()) == ([signal.SIGINT], [])
    with (launch_folder(lock) / "requests").open("a") as file:
        file.write("1")
    assert requests.new() == []
    with (launch_folder(lock) / "requests").open("a") as file:
        file.write("5\n")
    assert requests.new() == [signal.SIGTERM]


def test_an_errand_whose_keeper_says_nothing_is_lost(tmp_path, monkeypatch):
    keeper = tmp_path / "keeper"
    keeper.write_text("#!/bin/sh\nkill -9 $$\n")
    keeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(keeper))
    with pytest.raises(WorkerLostError, match="the process that kept the run is gone"):
        Errand("file", "first")()


def test_a_run_that_outlived_compare_on_another_machine_is_signalled_there(order):
    """The process number in the lock is that machine's, and means somebody else here."""
    write_order(order)
    with locked_by("elsewhere", order.run.lock):
        Orphan(order.run).signal(signal.SIGINT)
    assert Requests(order.run.lock).new() == [signal.SIGINT]


def locked_by(host, lock: Path):
    """Hold a run's lock as a process of another host does, under this process's own number."""
    from contextlib import contextmanager

    from grpovi_lightning.run_record.lock import acquire

    @contextmanager
    def held():
        with lock.open("w") as handle:
            assert acquire(handle.fileno())
            handle.write(f"{os.getpid()} {host}")
            handle.flush()
            yield

    return held()
