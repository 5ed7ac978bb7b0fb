import json
import math
from pathlib import Path

import pytest
from synthetic_runs import (
    GOLD,
    line,
    run_folder,
    write_events,
    write_run,
    write_status,
    write_study,
    write_study_yaml,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from analysis import ReportError, load_runs, load_status
from analysis.events import read_events
from analysis.run_log import read_scalars

COLUMNS = ["arm", "seed", "run", "metric", "step", "value", "wall_time"]


def only(table, **wanted):
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def test_a_study_gives_one_row_a_value_with_arm_and_seed_from_its_folders(tmp_path: Path):
    write_study(tmp_path, {"grpo": {1: {0: 0.5, 10: 0.75}, 2: {0: 0.25}}}, {})
    runs = load_runs(tmp_path)
    assert list(runs.columns) == COLUMNS
    gold = only(runs, metric=GOLD)
    assert gold[["arm", "seed", "run", "step", "value"]].to_numpy().tolist() == [
        ["grpo", 1, "arms/grpo/seed_1", 0, 0.5],
        ["grpo", 1, "arms/grpo/seed_1", 10, 0.75],
        ["grpo", 2, "arms/grpo/seed_2", 0, 0.25],
    ]


def test_runs_of_the_prepare_stages_are_no_arms(tmp_path: Path):
    write_study(tmp_path, {"grpo": {1: line(0, 1)}}, {})
    write_run(tmp_path / "prepare" / "reward_model", line(0, 1), seed=1)
    assert set(load_runs(tmp_path)["arm"]) == set(load_status(tmp_path)["arm"]) == {"grpo"}


def test_bare_runs_take_their_arm_from_the_folder_and_their_seed_from_status(tmp_path: Path):
    write_run(tmp_path / "plain", line(0, 1), seed=7)
    write_run(tmp_path / "deep" / "raised" / "seed_3", line(0, 1), seed=3)
    found = load_status(tmp_path)[["arm", "seed", "run"]].to_numpy().tolist()
    assert found == [["plain", 7, "plain"], ["raised", 3, "deep/raised/seed_3"]]


def test_a_run_directory_can_be_given_itself(tmp_path: Path):
    write_run(tmp_path / "grpo" / "seed_4", line(0, 1), seed=4)
    status = load_status(tmp_path / "grpo" / "seed_4")
    assert status[["arm", "seed", "run"]].to_numpy().tolist() == [["grpo", 4, "."]]


def test_for_one_step_the_value_with_the_latest_wall_time_counts_over_all_files(tmp_path: Path):
    folder = tmp_path / "grpo"
    write_events(folder, {GOLD: {0: 0.0, 10: 0.1, 20: 0.2}}, wall_time=100.0, name="1")
    write_events(folder, {GOLD: {10: 0.6, 20: 0.7, 30: 0.8}}, wall_time=200.0, name="2")
    write_events(folder, {GOLD: {20: -1.0}}, wall_time=150.0, name="3")
    write_status(folder)
    gold = only(load_runs(tmp_path), metric=GOLD)
    assert dict(zip(gold["step"], gold["value"].round(6), strict=True)) == {0: 0.0, 10: 0.6, 20: 0.7, 30: 0.8}


def test_what_a_resumed_run_superseded_is_left_out_and_its_checkpoint_s_own_evaluation_stays(tmp_path: Path):
    from torch.utils.tensorboard import SummaryWriter

    # Six steps; then from the checkpoint of step 2 to step 4; then once more from that of step 3, killed at once.
    for attempt, (first, last, mark) in enumerate([(0, 6, None), (2, 4, 3), (3, 3, 4)]):
        with SummaryWriter(str(tmp_path / "grpo"), purge_step=mark, filename_suffix=str(attempt)) as writer:
            for step in range(first, last):
                writer.add_scalar("reward", attempt, step)
                writer.add_scalar(GOLD, attempt, step + 1)
    write_status(tmp_path / "grpo")
    runs = load_runs(tmp_path)
    for metric, expected in (("reward", {0: 0, 1: 0, 2: 1}), (GOLD, {1: 0, 2: 0, 3: 1})):
        rows = only(runs, metric=metric)
        assert dict(zip(rows["step"], rows["value"], strict=True)) == expected


def test_every_value_is_kept_as_tensorboard_itself_reads_it(tmp_path: Path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "grpo")) as writer:
        for step in range(100):
            writer.add_scalar("reward", math.sin(step), step)
            writer.add_scalar(GOLD, math.cos(step), step)
        writer.add_text("samples", "a text is no scalar", 0)
    write_status(tmp_path / "grpo")
    runs = load_runs(tmp_path)
    reference = EventAccumulator(str(tmp_path / "grpo"), size_guidance={"scalars": 0})
    reference.Reload()
    assert set(runs["metric"]) == set(reference.Tags()["scalars"])
    for metric in ("reward", GOLD):
        ours = only(runs, metric=metric)[["step", "value", "wall_time"]].itertuples(index=False, name=None)
        assert list(ours) == [(event.step, event.value, event.wall_time) for event in reference.Scalars(metric)]


def test_more_values_than_tensorboard_keeps_by_default_are_all_kept(tmp_path: Path):
    write_events(tmp_path / "grpo", {"reward": {step: float(step % 7) for step in range(10_050)}})
    write_status(tmp_path / "grpo")
    assert load_runs(tmp_path)["step"].tolist() == list(range(10_050))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"state": "failed", "step": 40, "error": "boom"}, "failed at step 40 of 100: boom"),
        ({"state": "running", "step": 7}, "not finished: running, at step 7 of 100"),
        ({"state": "interrupted", "step": 9}, "interrupted at step 9 of 100"),
        ({"state": "asleep"}, "status.json names no state out of running, finished, failed, interrupted"),
        ({"seed": None}, "no seed was recorded, so it cannot be paired with a run of another arm"),
        ({}, None),
    ],
)
def test_a_run_that_did_not_finish_is_listed_with_its_reason(tmp_path: Path, fields: dict, reason: str | None):
    write_events(tmp_path / "grpo", {GOLD: line(0, 1)})
    write_status(tmp_path / "grpo", **fields)
    assert load_status(tmp_path)["problem"].tolist() == [reason]


def test_a_seed_folder_that_contradicts_its_status_is_a_reason(tmp_path: Path):
    write_run(run_folder(tmp_path, "grpo", 1), line(0, 1), seed=2)
    assert load_status(tmp_path)["problem"].tolist() == ["the folder says seed 1, status.json says seed 2"]


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_a_corrupt_status_file_is_one_line_and_no_traceback(tmp_path: Path, content: str):
    folder = write_run(tmp_path / "grpo", line(0, 1), seed=1)
    (folder / "status.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    (problem,) = load_status(tmp_path)["problem"]
    assert problem.startswith("status.json cannot be read: ") and "\n" not in problem


def test_a_run_that_died_before_it_wrote_anything_is_still_listed(tmp_path: Path):
    write_study(tmp_path, {"grpo": {1: line(0, 1)}}, {})
    folder = run_folder(tmp_path, "grpo", 2)
    folder.mkdir()
    (folder / "process.log").write_text("Killed")
    status = load_status(tmp_path)
    assert status["seed"].tolist() == [1, 2]
    assert status["problem"].tolist() == [None, "no status.json: the run never started, or was not started by `grpovi`"]


def test_a_flipped_bit_in_an_event_file_is_a_reason_and_its_values_are_not_used(tmp_path: Path):
    folder = write_run(tmp_path / "grpo", line(0, 1), seed=1)
    (file,) = folder.glob("events*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    (problem,) = load_status(tmp_path)["problem"]
    assert problem.startswith(f"damaged log file {file.name}: ")
    assert load_runs(tmp_path).empty


def test_a_torn_last_record_is_a_reason_only_in_the_newest_file_of_a_finished_run(tmp_path: Path):
    folder = tmp_path / "grpo"
    write_status(folder)
    first = write_events(folder, {GOLD: line(0, 1)}, name="1")
    whole = first.read_bytes()
    first.write_bytes(whole[:-5])
    (problem,) = load_status(tmp_path)["problem"]
    assert problem == f"log file {first.name} ends inside a record, so its last values are missing"
    write_events(folder, {GOLD: line(0, 1)}, name="2")
    assert load_status(tmp_path)["problem"].tolist() == [None]


def test_every_cut_of_an_event_file_is_torn_except_between_records(tmp_path: Path):
    file = write_events(tmp_path, {"reward": {0: 1.0, 1: 2.0}})
    whole = file.read_bytes()
    boundaries = []
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        if not read_events(file.read_bytes()).is_torn:
            boundaries.append(length)
    assert len(boundaries) == 4, "nothing, the version record, and after each of two values"
    assert boundaries[0] == 0 and boundaries[-1] == len(whole)


def test_garbage_is_named_as_damage(tmp_path: Path):
    (tmp_path / "events.out.tfevents.1").write_bytes(b"this is no event file at all, not even close")
    assert read_scalars(tmp_path).damage == "events.out.tfevents.1: not a TensorBoard record at byte 0 of 44"


def test_two_runs_of_one_arm_and_seed_are_both_set_aside(tmp_path: Path):
    write_run(tmp_path / "a" / "grpo", line(0, 1), seed=1)
    write_run(tmp_path / "b" / "grpo", line(0, 1), seed=1)
    reason = "several runs of this arm with seed 1: a/grpo, b/grpo; keep one"
    assert load_status(tmp_path)["problem"].tolist() == [reason, reason]


def test_status_carries_what_the_report_shows(tmp_path: Path):
    write_run(tmp_path / "grpo", line(0, 1), seed=1, warnings=["nearly all groups are equal"], wall_seconds=12.5)
    row = load_status(tmp_path).iloc[0]
    assert row["warnings"] == ("nearly all groups are equal",)
    assert (row["state"], row["step"], row["max_steps"], row["wall_seconds"]) == ("finished", 100, 100, 12.5)
    assert row["first_rollout"] == "ab" * 32 and row["error"] is None


def test_a_missing_folder_and_an_empty_one_are_told_apart(tmp_path: Path):
    with pytest.raises(ReportError, match="no such folder"):
        load_runs(tmp_path / "nowhere")
    with pytest.raises(ReportError, match="no runs in it"):
        load_status(tmp_path)


def test_a_folder_of_several_studies_asks_for_one(tmp_path: Path):
    for name in ("one", "two"):
        write_study_yaml(tmp_path / name, ["grpo"], {}, [1])
    with pytest.raises(ReportError, match=r"holds 2 studies \(one, two\); give the folder of one"):
        load_runs(tmp_path)


def test_a_status_with_wrong_types_is_not_trusted(tmp_path: Path):
    folder = write_run(tmp_path / "grpo", line(0, 1), seed=1)
    status = json.loads((folder / "status.json").read_text()) | {"seed": True, "step": "ten", "warnings": "one line"}
    (folder / "status.json").write_text(json.dumps(status))
    row = load_status(tmp_path).iloc[0]
    assert row["warnings"] == ("one line",)
    assert row["problem"].startswith("no seed was recorded")
