"""`compare` from the outside, with processes that keep the contract of a run but train nothing."""

import fcntl
import json
import os
import shutil
import sys
from itertools import pairwise

import pytest
import yaml

from grpovi_lightning.errors import UserError


def most_at_once(journal, kind):
    """The largest number of processes of `kind` that were alive at one time, from their own time stamps."""
    changes = []
    for entry in journal:
        if entry["run"].split("/")[0] in kind and entry["event"] in ("start", "end"):
            changes.append((entry["time"], 1 if entry["event"] == "start" else -1))
    alive = most = 0
    for _, change in sorted(changes):
        alive += change
        most = max(most, alive)
    return most


def test_stages_run_in_order_and_once_before_every_arm_with_every_seed(bench):
    bench.write()
    assert bench.compare() == 0
    started = bench.started()
    assert started[:2] == ["prepare/task", "prepare/sft"]
    assert sorted(started[2:]) == ["other/seed_1", "other/seed_2", "plain/seed_1", "plain/seed_2"]
    ends = {entry["run"]: entry["time"] for entry in bench.journal("end")}
    starts = {entry["run"]: entry["time"] for entry in bench.journal("start")}
    order = ["prepare/task", "prepare/sft", "plain/seed_1"]
    assert all(ends[before] < starts[after] for before, after in pairwise(order))
    assert bench.reported == [bench.folder]


def test_a_process_gets_its_configs_its_folders_and_its_seed(bench):
    bench.write(threads_per_run=3, threads_per_stage=2)
    bench.compare()
    entries = {entry["run"]: entry for entry in bench.journal("start")}
    run_dir = str(bench.run_dir("other", 2))
    configs = ["--config", str(bench.root / "arm.yaml"), "--config", str(bench.root / "other.yaml")]
    places = ["--study_dir", str(bench.folder), "--trainer.default_root_dir", run_dir]
    assert entries["other/seed_2"]["arguments"] == ["fit", *configs, *places, "--seed_everything", "2"]
    assert "--seed_everything" not in entries["prepare/sft"]["arguments"]
    task = ["task", "--config", str(bench.root / "task.yaml"), "--output", str(bench.folder / "prepare" / "task")]
    assert entries["prepare/task"]["arguments"] == task
    threads = {run.partition("/")[0] == "prepare": entry["threads"] for run, entry in entries.items()}
    assert threads == {True: "2", False: "3"}


SAMPLED = {"drawn": {"command": "sample", "configs": ["task.yaml"]}, "sft": {"configs": ["sft.yaml"]}}


@pytest.mark.parametrize("command", ["sample", "relabel"])
def test_a_stage_can_make_tables_for_the_stages_after_it(bench, command):
    bench.write(prepare=SAMPLED | {"drawn": SAMPLED["drawn"] | {"command": command}})
    assert bench.compare() == 0
    folder = bench.folder / "prepare" / "drawn"
    places = ["--study_dir", str(bench.folder), "--output", str(folder)]
    assert bench.journal("start")[0]["arguments"] == [command, "--config", str(bench.root / "task.yaml"), *places]
    assert (folder.parent / "drawn.process.log").is_file()
    before = bench.started()
    assert bench.compare() == 0 and bench.started() == before


@pytest.mark.parametrize("command", ["sample", "relabel"])
def test_a_stage_that_makes_tables_goes_on_with_what_an_earlier_attempt_left(bench, capfd, command):
    bench.config("task.yaml", kill_fresh_at=1)
    bench.write(prepare=SAMPLED | {"drawn": SAMPLED["drawn"] | {"command": command}})
    assert bench.compare() == 1
    assert bench.started() == ["prepare/drawn"]
    assert "prepare drawn failed: killed by SIGKILL" in capfd.readouterr().err
    assert bench.compare() == 0
    parts = sorted((bench.folder / "prepare" / "drawn").glob("part_*"))
    assert [part.read_text() for part in parts] == ["made afterwards", "made before the kill", "made afterwards"]
    assert bench.started()[1:3] == ["prepare/drawn", "prepare/sft"]


def test_finished_runs_are_not_run_again(bench):
    bench.write()
    bench.compare()
    before = bench.started()
    bench.preflighted.clear()
    assert bench.compare() == 0
    assert bench.started() == before
    assert bench.preflighted == []
    assert bench.reported == [bench.folder] * 2


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_no_more_runs_than_jobs_live_at_one_time(bench, jobs):
    bench.config("arm.yaml", step_seconds=0.1)
    bench.write(prepare=None)
    bench.compare(jobs=jobs)
    assert most_at_once(bench.journal(), ("plain", "other")) == jobs


def test_prepare_stages_never_overlap(bench):
    bench.config("sft.yaml", step_seconds=0.1)
    bench.write(prepare={"one": {"configs": ["sft.yaml"]}, "two": {"configs": ["sft.yaml"]}}, seeds=[1])
    bench.compare(jobs=4)
    assert most_at_once(bench.journal(), ("prepare",)) == 1


def test_a_failed_run_is_reported_with_its_error_and_the_others_finish(bench, capfd):
    bench.config("other.yaml", fail_at=1)
    bench.write()
    assert bench.compare() == 1
    assert [bench.status("plain", seed)["state"] for seed in (1, 2)] == ["finished", "finished"]
    errors = capfd.readouterr().err.splitlines()
    log = bench.run_dir("other", 1) / "process.log"
    expected = f"arm other seed 1 failed at step 1 of 3: loss is not finite (all it said: {log})"
    assert f"grpovi: error: {expected}" in errors
    assert errors[-1] == "grpovi: error: 2 of 4 runs did not finish; the same command tries again"
    assert bench.reported == [bench.folder]


def test_a_run_that_dies_without_a_word_in_its_status_is_reported_with_the_end_of_its_log(bench, capfd):
    bench.config("other.yaml", crash_at=0, crash_output="Traceback\n  in line 3\nValueError: [odd] shape")
    bench.write(seeds=[1])
    assert bench.compare() == 1
    assert "arm other seed 1 failed: Traceback | in line 3 | ValueError: [odd] shape (all" in capfd.readouterr().err
    status = bench.status("other", 1)
    assert (status["state"], status["seed"]) == ("failed", 1)
    assert status["error"] == "Traceback | in line 3 | ValueError: [odd] shape"


def test_a_killed_run_says_so_and_continues_from_its_checkpoint(bench, capfd):
    bench.config("other.yaml", kill_fresh_at=2)
    bench.write(seeds=[1])
    assert bench.compare() == 1
    assert "arm other seed 1 failed at step 2 of 3: killed by SIGKILL" in capfd.readouterr().err
    assert bench.status("other", 1)["state"] == "failed"
    assert bench.compare() == 0
    last = bench.journal("start")[-1]
    checkpoint = bench.run_dir("other", 1) / "checkpoints" / "last.ckpt"
    assert last["arguments"][-2:] == ["--ckpt_path", str(checkpoint)]
    assert bench.journal("end")[-1]["steps_done"] == 1
    assert bench.status("other", 1) | {"pid": 0} == bench.status("plain", 1) | {"pid": 0}


def test_an_old_error_is_not_taken_for_the_error_of_the_next_attempt(bench, capfd):
    bench.config("other.yaml", fail_at=1)
    bench.write(seeds=[1])
    bench.compare()
    capfd.readouterr()
    program = [sys.executable, "-c", "import sys; sys.exit('ImportError: no module')"]
    assert bench.compare(program=program) == 1
    assert "arm other seed 1 failed at step 1 of 3: ImportError: no module (all" in capfd.readouterr().err
    assert bench.status("other", 1)["error"] == "ImportError: no module"


def test_a_run_without_a_checkpoint_starts_anew_from_an_empty_folder(bench):
    bench.config("other.yaml", kill_fresh_at=0)
    bench.write(seeds=[1])
    bench.compare()
    (bench.run_dir("other", 1) / "events.out.tfevents.1").write_text("rest of the first attempt")
    bench.compare()
    assert "--ckpt_path" not in bench.journal("start")[-1]["arguments"]
    assert not (bench.run_dir("other", 1) / "events.out.tfevents.1").exists()


def test_a_checkpoint_that_was_cut_short_is_not_continued_from(bench):
    bench.config("other.yaml", kill_fresh_at=2)
    bench.write(seeds=[1])
    bench.compare()
    checkpoint = bench.run_dir("other", 1) / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    bench.compare()
    assert "--ckpt_path" not in bench.journal("start")[-1]["arguments"]


def test_a_process_that_leaves_early_with_status_zero_did_not_finish(bench, capfd):
    bench.config("other.yaml", leave_at=1)
    bench.write(seeds=[1])
    assert bench.compare() == 1
    assert "arm other seed 1 failed at step 1 of 3: the process ended without finishing" in capfd.readouterr().err


@pytest.mark.parametrize(("stage", "said"), [("task", "the task was asked to fail"), ("sft", "loss is not finite")])
def test_a_failed_stage_stops_everything_with_its_error(bench, capfd, stage, said):
    bench.config(f"{stage}.yaml", fail_at=0)
    bench.write()
    assert bench.compare() == 1
    assert bench.started()[-1] == f"prepare/{stage}"
    error = capfd.readouterr().err
    assert f"grpovi: error: prepare {stage} failed" in error
    assert said in error
    assert bench.reported == []
    bench.compare()
    assert bench.started()[-1] == f"prepare/{stage}"


def test_workers_that_a_run_leaves_behind_are_ended(bench, is_alive, wait_until):
    bench.config("other.yaml", worker=True)
    bench.write(seeds=[1])
    assert bench.compare() == 0
    (worker,) = [entry["worker"] for entry in bench.journal("worker")]
    wait_until(lambda: not is_alive(worker), 5)


def test_every_configuration_is_checked_before_anything_runs_or_is_written(bench):
    bench.write()

    def refuse(arguments):
        if str(bench.root / "other.yaml") in arguments:
            raise UserError("group_size is 1")

    with pytest.raises(UserError, match="arm 'other': group_size is 1"):
        bench.compare(preflight=refuse)
    assert bench.started() == []
    assert not bench.output.exists()


def test_the_check_gets_the_command_line_of_each_stage_and_arm_once(bench):
    bench.write()
    bench.compare()
    assert len(bench.preflighted) == 3
    commands = [entry["arguments"] for entry in bench.journal("start")]
    assert all(arguments in commands for arguments in bench.preflighted)


def test_a_stage_that_samples_is_checked_before_anything_runs_too(bench):
    bench.write(prepare=SAMPLED)
    bench.compare()
    assert [arguments[0] for arguments in bench.preflighted] == ["sample", "fit", "fit", "fit"]
    assert bench.preflighted[0] == bench.journal("start")[0]["arguments"]


def test_new_seeds_run_and_old_ones_stay(bench):
    bench.write()
    bench.compare()
    before = bench.started()
    assert bench.compare(seeds="1,2,5") == 0
    assert sorted(bench.started()[len(before) :]) == ["other/seed_5", "plain/seed_5"]
    assert yaml.safe_load((bench.folder / "study.yaml").read_text())["seeds"] == [1, 2, 5]


def test_a_stage_whose_model_is_gone_makes_it_again_once_a_run_needs_it(bench):
    bench.write()
    assert bench.compare() == 0
    shutil.rmtree(bench.folder / "prepare" / "sft" / "model")
    before = len(bench.started())

    assert bench.compare() == 0
    assert len(bench.started()) == before, "all arms are finished"

    assert bench.compare(seeds=[1, 3]) == 0
    first, *others = bench.journal("start")[before:]
    assert first["run"] == "prepare/sft" and "--ckpt_path" in first["arguments"]
    assert {entry["run"] for entry in others} == {"plain/seed_3", "other/seed_3"}
    assert (bench.folder / "prepare" / "sft" / "model").is_dir()


def test_asking_for_fewer_seeds_forgets_none(bench):
    bench.write()
    bench.compare()
    assert bench.compare(seeds=[2]) == 0
    assert yaml.safe_load((bench.folder / "study.yaml").read_text())["seeds"] == [1, 2]


def test_a_different_study_is_refused_and_nothing_is_touched(bench, tree):
    bench.write()
    bench.compare()
    before, started = tree(bench.output), bench.started()
    bench.config("other.yaml", note="other.yaml", steps=9)
    with pytest.raises(UserError) as caught:
        bench.compare()
    expected = f"{bench.folder} holds a different study: arm 'other': other.yaml: steps is 9 now and absent there"
    assert str(caught.value) == f"{expected}; give --output another folder, or remove {bench.folder}"
    assert tree(bench.output) == before
    assert bench.started() == started


def test_a_config_edited_while_the_study_runs_fails_the_runs_that_would_use_it(bench, capfd):
    bench.write(seeds=[1])
    edited = bench.root / "other.yaml"

    def edit_afterwards(arguments):
        if str(edited) in arguments:
            edited.write_text("steps: 4\n")

    assert bench.compare(preflight=edit_afterwards) == 1
    assert "other/seed_1" not in bench.started()
    assert "arm other seed 1 failed: other.yaml was edited: note is absent now" in capfd.readouterr().err


def test_a_run_recorded_by_a_newer_version_is_left_alone(bench, tree):
    bench.write()
    assert bench.compare() == 0
    (bench.run_dir("other", 2) / "status.json").write_text('{"schema": 3, "state": "finished"}')
    before = tree(bench.output)
    with pytest.raises(UserError, match=r"other/seed_2/status\.json has layout 3, and this version of grpovi reads"):
        bench.compare()
    assert tree(bench.output) == before


def test_two_compares_cannot_work_in_one_folder(bench):
    bench.write()
    bench.folder.mkdir(parents=True)
    with (bench.folder / ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another `grpovi compare` works in"):
            bench.compare()
        assert not (bench.folder / "study.yaml").exists()
    assert bench.compare() == 0


def test_arms_that_begin_differently_under_one_seed_are_an_error_and_still_reported(bench, capfd):
    bench.config("arm.yaml", rollout="a{seed}")
    bench.config("other.yaml", rollout="b")
    bench.write()
    bench.compare()
    errors = capfd.readouterr().err.splitlines()
    assert "seed 1: the rollouts of step 0 differ between arms (plain a1, other b)" in errors[0]
    assert "seed 2: the rollouts of step 0 differ between arms (plain a2, other b)" in errors[1]
    assert bench.reported == [bench.folder]
    assert bench.compare() == 1


def test_arms_that_begin_alike_under_each_seed_are_fine_though_seeds_differ(bench, capfd):
    bench.config("arm.yaml", rollout="a{seed}")
    bench.write()
    assert bench.compare() == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_a_senseless_number_of_jobs_is_refused(bench, jobs):
    bench.write()
    with pytest.raises(UserError, match=r"--jobs is .*expected a whole number of at least 1"):
        bench.compare(jobs=jobs)


def test_without_a_number_of_jobs_each_core_is_used_once(bench):
    bench.config("arm.yaml", step_seconds=0.1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bench.write(prepare=None, threads_per_run=cores)
    bench.compare(jobs=None)
    assert most_at_once(bench.journal(), ("plain", "other")) == 1


def test_lines_instead_of_a_table_go_to_a_pipe(bench, capfd):
    bench.write(seeds=[1], prepare=None)
    bench.compare(jobs=1)
    lines = [line.split(" ", 1)[1] for line in capfd.readouterr().out.splitlines()]
    assert lines[0] == "arm plain seed 1: started"
    assert lines[1].startswith("arm plain seed 1: finished in ")
    assert lines[2] == "arm other seed 1: started"
    assert len(lines) == 4


def test_the_record_is_the_study_file_plus_the_contents_of_its_configs(bench):
    bench.write(report={"metric": "reward"})
    bench.compare()
    record = yaml.safe_load((bench.folder / "study.yaml").read_text())
    written = yaml.safe_load(bench.study_file.read_text())
    assert record["files"] == {name: {"note": name} for name in ("task.yaml", "sft.yaml", "arm.yaml", "other.yaml")}
    assert record["arms"] == written["arms"]
    assert record["report"] == written["report"]
    assert json.dumps(record["prepare"]["sft"]) == '{"command": "fit", "configs": ["sft.yaml"]}'
