"""`compare` as a process of its own that is sent signals, with real child processes."""

import os
import signal
import time

import pytest


def running_arms(bench):
    return [
        run_dir
        for run_dir in bench.folder.glob("arms/other/seed_*")
        if (run_dir / "checkpoints" / "last.ckpt").exists() and '"running"' in (run_dir / "status.json").read_text()
    ]


@pytest.fixture
def slow_bench(bench):
    """The first arm is over at once; of the other each seed takes long enough to be interrupted."""
    bench.config("arm.yaml", steps=3, step_seconds=0.01)
    bench.config("other.yaml", steps=100, step_seconds=0.2, worker=True)
    bench.write(prepare=None)
    return bench


def quicken(bench):
    """Let the rest of the study be quick: the same edit in the config and in the record, so it stays one study."""
    record = bench.folder / "study.yaml"
    record.write_text(record.read_text().replace("step_seconds: 0.2", "step_seconds: 0.001"))
    bench.config("other.yaml", steps=100, step_seconds=0.001, worker=True)


@pytest.mark.parametrize(("signum", "exit_status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_the_same_command_goes_on(slow_bench, wait_until, is_alive, signum, exit_status):
    process = slow_bench.start()
    wait_until(lambda: len(running_arms(slow_bench)) == 2)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == exit_status
    expected = "stopped: 2 of 4 runs finished, 2 interrupted; run the same command again to go on"
    assert errors == f"grpovi: error: {expected}\n"
    wait_until(lambda: not any(is_alive(pid) for pid in slow_bench.pids()), 5)
    assert sorted(entry["run"] for entry in slow_bench.journal("sigint")) == ["other/seed_1", "other/seed_2"]
    assert slow_bench.status("other", 1)["state"] == "interrupted"
    assert not (slow_bench.folder / "report").exists()

    quicken(slow_bench)
    steps_before = slow_bench.status("other", 1)["step"]
    process = slow_bench.start()
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert sorted(slow_bench.started()[4:]) == ["other/seed_1", "other/seed_2"]
    ends = {entry["run"]: entry for entry in slow_bench.journal("end")}
    assert ends["other/seed_1"]["steps_done"] == 100 - steps_before
    assert (slow_bench.folder / "report" / "index.html").exists()


def test_the_terminal_s_ctrl_c_reaches_each_run_once(slow_bench, wait_until):
    process = slow_bench.start(jobs=1)
    wait_until(lambda: running_arms(slow_bench))
    (child,) = [entry["pid"] for entry in slow_bench.journal("start") if entry["run"] == "other/seed_1"]
    # A terminal signals the foreground group; a run in a group of its own hears of it from the runner alone.
    assert os.getpgid(child) == child
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert len(slow_bench.journal("sigint")) == 1


def test_a_run_that_ignores_requests_is_ended_after_the_time_limit(bench, wait_until, is_alive):
    bench.config("other.yaml", steps=100, step_seconds=0.2, ignore_sigint=True)
    bench.write(prepare=None, seeds=[1], arms={"other": {"configs": ["other.yaml"]}})
    process = bench.start(patience=0.5)
    wait_until(lambda: running_arms(bench))
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert 0.5 < time.monotonic() - began < 4
    assert process.returncode == 130
    wait_until(lambda: not any(is_alive(pid) for pid in bench.pids()), 5)
    assert bench.status("other", 1)["state"] == "interrupted"


def test_ctrl_c_again_and_again_ends_even_a_run_that_ignores_everything(bench, wait_until, is_alive):
    bench.config("other.yaml", steps=100, step_seconds=0.2, ignore_sigint=True, ignore_sigterm=True)
    bench.write(prepare=None, seeds=[1], arms={"other": {"configs": ["other.yaml"]}})
    process = bench.start(patience=60)
    wait_until(lambda: running_arms(bench))
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    process.communicate(timeout=4)
    assert process.returncode == 130
    wait_until(lambda: not any(is_alive(pid) for pid in bench.pids()), 5)


def test_after_the_runner_was_killed_the_same_command_stops_what_it_left_and_goes_on(slow_bench, wait_until, is_alive):
    process = slow_bench.start()
    wait_until(lambda: len(running_arms(slow_bench)) == 2)
    process.kill()
    process.communicate(timeout=10)
    left = [entry["pid"] for entry in slow_bench.journal("start") if entry["run"].startswith("other/")]
    assert all(is_alive(pid) for pid in left)

    quicken(slow_bench)
    process = slow_bench.start()
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert output.count("stopping the process that an earlier compare left behind") == 2
    wait_until(lambda: not any(is_alive(pid) for pid in left), 5)
    again = slow_bench.journal("start")[4:]
    assert sorted(entry["run"] for entry in again) == ["other/seed_1", "other/seed_2"]
    assert all("--ckpt_path" in entry["arguments"] for entry in again)


def test_everything_killed_at_once_leaves_runs_that_say_running_and_are_continued(slow_bench, wait_until):
    process = slow_bench.start()
    wait_until(lambda: len(running_arms(slow_bench)) == 2)
    process.kill()
    for entry in slow_bench.journal("worker"):
        os.killpg(entry["pid"], signal.SIGKILL)
    process.communicate(timeout=10)
    assert slow_bench.status("other", 2)["state"] == "running"
    quicken(slow_bench)
    assert slow_bench.compare() == 0
    assert slow_bench.status("other", 2)["state"] == "finished"
    assert all("--ckpt_path" in entry["arguments"] for entry in slow_bench.journal("start")[4:])


def test_a_second_compare_is_refused_while_the_first_works(slow_bench, wait_until, tree):
    first = slow_bench.start()
    wait_until(lambda: len(running_arms(slow_bench)) == 2)
    started = len(slow_bench.started())
    second = slow_bench.start()
    _, errors = second.communicate(timeout=10)
    assert second.returncode == 2
    assert errors.startswith(f"grpovi: error: another `grpovi compare` works in {slow_bench.folder}")
    assert len(slow_bench.started()) == started
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=10)
    assert first.returncode == 130


def test_a_stage_that_was_interrupted_is_continued_before_the_arms(bench, wait_until):
    bench.config("sft.yaml", steps=100, step_seconds=0.2)
    bench.write(seeds=[1])
    process = bench.start()
    checkpoint = bench.folder / "prepare" / "sft" / "checkpoints" / "last.ckpt"
    wait_until(checkpoint.exists)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert bench.started() == ["prepare/task", "prepare/sft"]
    record = bench.folder / "study.yaml"
    record.write_text(record.read_text().replace("step_seconds: 0.2", "step_seconds: 0.001"))
    bench.config("sft.yaml", steps=100, step_seconds=0.001)
    assert bench.compare() == 0
    assert bench.started()[2] == "prepare/sft"
    assert sorted(bench.started()[3:]) == ["other/seed_1", "plain/seed_1"]
    assert "--ckpt_path" in bench.journal("start")[2]["arguments"]


def test_an_exception_in_the_runner_leaves_no_process_behind(bench, is_alive, wait_until, monkeypatch):
    bench.config("arm.yaml", steps=100, step_seconds=0.2)
    bench.write(prepare=None, seeds=[1])

    def fail(display):
        wait_until(lambda: len(bench.started()) == 2)
        raise BrokenPipeError

    monkeypatch.setattr("grpovi_lightning.study.progress.LineDisplay.refresh", fail)
    with pytest.raises(BrokenPipeError):
        bench.compare()
    wait_until(lambda: not any(is_alive(pid) for pid in bench.pids()), 5)


def test_signals_go_back_to_their_owners(bench):
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    bench.write(prepare=None, seeds=[1])
    bench.compare()
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_ctrl_c_while_configurations_are_checked_runs_nothing(bench, capfd):
    bench.write()

    def interrupted(arguments):
        raise KeyboardInterrupt

    assert bench.compare(preflight=interrupted) == 130
    assert "run the same command again" in capfd.readouterr().err
    assert not bench.output.exists()
