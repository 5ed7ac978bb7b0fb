"""Studies as jobs of submitit's local executor, which keeps to what it does under SLURM but for the queue."""

import os
import signal
import time

import psutil
import pytest

from grpovi_lightning.errors import UserError
from grpovi_lightning.study.launchers import make_launcher


@pytest.fixture
def jobs(bench):
    (bench.root / "launcher.yaml").write_text("cluster: local\nretries: 1\n")
    return bench


@pytest.fixture
def launcher(jobs):
    return make_launcher("slurm", jobs.root / "launcher.yaml")


def one_slow_run(bench, **config):
    bench.config("other.yaml", steps=100, step_seconds=0.2, **config)
    bench.write(prepare=None, seeds=[1], arms={"other": {"configs": ["other.yaml"]}})
    return bench.run_dir("other", 1) / "checkpoints" / "last.ckpt"


def run_process(bench):
    """The run, the keeper, submitit's process."""
    fit = psutil.Process(bench.pids()[-1])
    keeper = fit.parent()
    return fit, keeper, keeper.parent().parent()


def test_a_study_leaves_the_files_that_it_leaves_here(jobs, launcher, capfd):
    jobs.write()
    assert jobs.compare(launcher=launcher, jobs=None) == 0
    assert sorted(jobs.started()) == [
        "other/seed_1",
        "other/seed_2",
        "plain/seed_1",
        "plain/seed_2",
        "prepare/sft",
        "prepare/task",
    ]
    there = files(jobs.folder)
    assert {entry["threads"] for entry in jobs.journal("start")} == {"1"}
    said = capfd.readouterr().out
    assert "arm other seed 2: queued" in said and "arm other seed 2: finished in" in said
    jobs.output = jobs.root / "here"
    jobs.folder = jobs.output / "small"
    assert jobs.compare() == 0
    assert there == files(jobs.folder)


def files(folder):
    """Every file that a study has wherever it ran."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(".jobs") and ".launch" not in name}


@pytest.mark.parametrize(("signum", "exit_status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_runs_save_and_the_same_command_goes_on_here(jobs, wait_until, is_alive, signum, exit_status):
    checkpoint = one_slow_run(jobs)
    process = jobs.start(launcher="slurm")
    wait_until(checkpoint.exists)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == exit_status
    assert (
        errors == "grpovi: error: stopped: 0 of 1 runs finished, 1 interrupted; run the same command again to go on\n"
    )
    assert [entry["run"] for entry in jobs.journal("sigint")] == ["other/seed_1"]
    wait_until(lambda: not any(is_alive(pid) for pid in jobs.pids()), 5)
    steps = jobs.status("other", 1)["step"]
    quicken(jobs)
    assert jobs.compare() == 0
    assert jobs.journal("end")[-1]["steps_done"] == 100 - steps > 0


def quicken(bench):
    record = bench.folder / "study.yaml"
    record.write_text(record.read_text().replace("step_seconds: 0.2", "step_seconds: 0.001"))
    config = bench.root / "other.yaml"
    config.write_text(config.read_text().replace("step_seconds: 0.2", "step_seconds: 0.001"))


def test_a_run_that_ignores_every_request_is_killed_where_it_runs(jobs, wait_until, is_alive):
    checkpoint = one_slow_run(jobs, ignore_sigint=True, ignore_sigterm=True, worker=True)
    process = jobs.start(patience=60, launcher="slurm")
    wait_until(checkpoint.exists)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    process.communicate(timeout=20)
    assert process.returncode == 130
    wait_until(lambda: not any(is_alive(pid) for pid in jobs.pids()), 5)
    assert jobs.status("other", 1)["state"] == "interrupted"


def test_a_job_that_outlived_its_compare_is_stopped_by_the_next_one(jobs, wait_until, is_alive):
    checkpoint = one_slow_run(jobs)
    process = jobs.start(launcher="slurm")
    wait_until(checkpoint.exists)
    process.kill()
    process.wait(timeout=10)  # the job has its pipes
    (left,) = jobs.pids()
    time.sleep(0.5)
    assert is_alive(left)
    quicken(jobs)
    process = jobs.start(launcher="slurm")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert output.count("stopping the process that an earlier compare left behind") == 1
    wait_until(lambda: not is_alive(left), 5)
    assert "--ckpt_path" in jobs.journal("start")[1]["arguments"]


def test_a_pre_empted_job_saves_is_queued_again_and_goes_on(jobs, wait_until):
    checkpoint = one_slow_run(jobs)
    process = jobs.start(launcher="slurm")
    wait_until(checkpoint.exists)
    quicken(jobs)
    os.kill(run_process(jobs)[2].pid, signal.SIGUSR2)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "arm other seed 1: was taken off its machine; goes on on " in output
    assert len(jobs.journal("sigint")) == 1
    assert "--ckpt_path" in jobs.journal("start")[1]["arguments"]


def test_a_run_whose_machine_dies_is_submitted_again_as_often_as_was_said(jobs, wait_until):
    checkpoint = one_slow_run(jobs)
    process = jobs.start(launcher="slurm")
    for attempt in (1, 2):
        wait_until(lambda attempt=attempt: len(jobs.started()) == attempt and checkpoint.exists())
        fit, keeper, job = run_process(jobs)
        for each in (keeper, fit, job):
            each.kill()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.count("retry 1 of 1, from its last checkpoint") == 1
    assert "--ckpt_path" in jobs.journal("start")[1]["arguments"]
    assert "arm other seed 1 failed" in errors and "no retry is left" in errors.splitlines()[0]


def test_a_run_that_fails_by_itself_is_not_submitted_again(jobs, launcher, capfd):
    jobs.config("other.yaml", steps=3, crash_at=2)
    jobs.write(prepare=None, seeds=[1], arms={"other": {"configs": ["other.yaml"]}})
    assert jobs.compare(launcher=launcher) == 1
    assert ": ValueError: exploded (all it said: " in capfd.readouterr().err
    assert jobs.started() == ["other/seed_1"]


def test_a_machine_without_slurm_is_one_line(bench):
    bench.write()
    with pytest.raises(UserError, match="--launcher slurm: this machine has no srun; start"):
        bench.compare(launcher=make_launcher("slurm"))
    assert not bench.output.exists()


def test_a_parameter_that_submitit_does_not_know_is_one_line(jobs, tmp_path):
    jobs.write()
    (tmp_path / "launcher.yaml").write_text("cluster: local\nparameters: {slurm_partitoin: gpu}\n")
    with pytest.raises(UserError, match="Unknown argument 'partitoin'") as caught:
        jobs.compare(launcher=make_launcher("slurm", tmp_path / "launcher.yaml"))
    assert "\n" not in str(caught.value)
