"""Records are read and written as real files: half a file, an older layout and a newer one among them."""

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from analysis import ReportError, load_runs, load_status
from analysis.settings import read_settings
from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.layout import SCHEMA, RecordError, folder_seed, replace_file, run_folder
from grpovi_lightning.run_record.pairing import by_seed
from grpovi_lightning.run_record.status import (
    RunRecord,
    UnreadableError,
    read_status,
    require_status,
    settle_status,
    write_status,
)
from grpovi_lightning.run_record.study import StudyRecord, parse_study, study_mapping
from grpovi_lightning.study import load_study

WHOLE = RunRecord(
    state="finished",
    seed=3,
    step=100,
    max_steps=100,
    error=None,
    warnings=("nearly all groups are equal",),
    first_rollout="ab" * 32,
    held_out="cd" * 32,
    started="2026-01-01T00:00:00+00:00",
    updated="2026-01-01T00:01:00+00:00",
    wall_seconds=60.25,
    stage="GRPOModule",
    adjustment="VarianceIncrease",
    adjusts=True,
    device="cpu",
    world_size=2,
    threads=1,
    loggers=("TensorBoardLogger", "CSVLogger"),
    torch="2.9.0",
    pid=17,
)
LAYOUT_1 = {"state": "finished", "seed": 3, "step": 100, "max_steps": 100, "adjustment": "IdentityAdjustment"}


def write(folder: Path, content: object) -> Path:
    (folder / "status.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


class TestStatus:
    def test_every_field_comes_back_as_it_was_written(self, tmp_path):
        assert None not in [getattr(WHOLE, item.name) for item in fields(WHOLE) if item.name != "error"]
        write_status(tmp_path / "run", WHOLE)
        assert require_status(tmp_path / "run") == read_status(tmp_path / "run") == WHOLE
        assert json.loads((tmp_path / "run" / "status.json").read_text())["schema"] == SCHEMA

    def test_what_a_run_did_not_say_is_none(self, tmp_path):
        assert read_status(write(tmp_path, {"schema": 2, "state": "running"})) == RunRecord("running")

    def test_keys_that_this_version_does_not_know_are_ignored(self, tmp_path):
        assert read_status(write(tmp_path, {"schema": 2, "state": "failed", "mood": "low"})) == RunRecord("failed")

    @pytest.mark.parametrize(
        ("key", "value", "taken"),
        [
            ("seed", True, None),
            ("seed", 1.0, None),
            ("step", "ten", None),
            ("wall_seconds", 3, 3.0),
            ("wall_seconds", "3", None),
            ("warnings", "one line", ("one line",)),
            ("warnings", [1, "two"], ("1", "two")),
            ("adjusts", "yes", None),
            ("error", 7, "7"),
        ],
    )
    def test_a_value_of_a_wrong_type_is_not_trusted(self, tmp_path, key, value, taken):
        assert getattr(require_status(write(tmp_path, {"state": "finished", key: value})), key) == taken

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": "asleep"}', '"finished"', "\x00"])
    def test_a_file_that_tells_no_state_is_no_status(self, tmp_path, text):
        assert read_status(write(tmp_path, text)) is None

    def test_a_file_cut_off_anywhere_is_no_status(self, tmp_path):
        write_status(tmp_path, WHOLE)
        text = (tmp_path / "status.json").read_text()
        for length in range(len(text) - 2):
            assert read_status(write(tmp_path, text[:length])) is None
            with pytest.raises(UnreadableError, match=r"^status\.json cannot be read: .") as caught:
                require_status(tmp_path)
            assert "\n" not in str(caught.value)

    def test_a_folder_without_the_file_is_told_from_a_damaged_file(self, tmp_path):
        assert read_status(tmp_path) is None
        with pytest.raises(UnreadableError, match=r"no status\.json: the run never started"):
            require_status(tmp_path)

    @pytest.mark.parametrize("schema", [3, 17, 0, -1, "2", 2.0, None, True])
    def test_a_layout_that_is_not_known_is_refused_by_its_name(self, tmp_path, schema):
        write(tmp_path, {"schema": schema, "state": "finished"})
        for read in (read_status, require_status):
            with pytest.raises(RecordError) as caught:
                read(tmp_path)
            said = f"{tmp_path}/status.json has layout {schema!r}, and this version of grpovi reads layouts 1 to 2; "
            assert str(caught.value).startswith(said) and not isinstance(caught.value, UnreadableError)

    @pytest.mark.parametrize(
        ("adjustment", "adjusts"),
        [
            ("IdentityAdjustment", False),
            ("grpovi_lightning.adjustment.IdentityAdjustment", False),
            ("VarianceIncrease", True),
            ("NoIdentityAdjustment", True),
            (None, None),
        ],
    )
    def test_layout_1_is_read_and_says_by_its_class_name_whether_the_arm_adjusts(self, tmp_path, adjustment, adjusts):
        record = read_status(write(tmp_path, LAYOUT_1 | {"adjustment": adjustment}))
        assert (record.state, record.seed, record.step, record.adjusts) == ("finished", 3, 100, adjusts)

    @pytest.mark.parametrize("adjusts", [True, False, None])
    def test_in_layout_2_a_name_says_nothing(self, tmp_path, adjusts):
        record = read_status(write(tmp_path, LAYOUT_1 | {"schema": 2, "adjusts": adjusts}))
        assert record.adjusts is adjusts

    def test_a_write_that_fails_leaves_the_file_as_it_was(self, tmp_path, monkeypatch):
        write_status(tmp_path, WHOLE)

        def full(self, content):
            os.write(os.open(self, os.O_CREAT | os.O_WRONLY), content[:20])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            write_status(tmp_path, replace(WHOLE, step=101))
        assert read_status(tmp_path) == WHOLE

    def test_a_whole_file_takes_the_place_of_the_old_one_and_nothing_is_left_beside_it(self, tmp_path):
        path = tmp_path / "made" / "file"
        replace_file(path, "one")
        with path.open() as reader:
            replace_file(path, "two")
            assert reader.read() == "one", "who has the old file open reads it to its end"
        assert [file.name for file in path.parent.iterdir()] == ["file"] and path.read_text() == "two"

    def test_a_status_settled_for_a_run_keeps_what_the_run_wrote(self, tmp_path):
        written = {"state": "running", "seed": 4, "step": 7, "max_steps": 9, "first_rollout": "x", "warnings": ["w"]}
        write(tmp_path, written)
        settle_status(tmp_path, "failed", error="killed", seed=4)
        content = json.loads((tmp_path / "status.json").read_text())
        assert {key: content[key] for key in written} == written | {"state": "failed"}
        assert content["error"] == "killed"

    def test_a_status_settled_for_a_run_that_wrote_none_has_its_seed(self, tmp_path):
        settle_status(tmp_path / "run", "interrupted", error=None, seed=4)
        record = read_status(tmp_path / "run")
        assert (record.state, record.seed, record.step, record.error) == ("interrupted", 4, None, None)
        assert record.started is not None and record.updated is not None


def test_a_run_s_folder_and_its_seed_belong_together():
    assert Path(run_folder("grpo", 12)).parts == ("arms", "grpo", "seed_12")
    assert folder_seed("seed_12") == 12
    assert [folder_seed(name) for name in ("seed_", "seed_x", "my_seed_1", "seed_1b", "grpo")] == [None] * 5


def test_what_runs_recorded_is_compared_within_a_seed_and_not_across_seeds():
    runs = [(2, "a", "x"), (1, "a", "y"), (2, "b", "x"), (1, "b", "z"), (3, "a", "x"), (3, "b", None)]
    checks = by_seed(runs)
    assert [(check.seed, check.differs, check.unknown) for check in checks] == [
        (1, True, ()),
        (2, False, ()),
        (3, False, ("b",)),
    ]
    assert checks[0].hashes == {"a": "y", "b": "z"}


STUDY = {
    "name": "small",
    "seeds": [1, 2],
    "prepare": {"task": {"command": "task", "configs": ["t.yaml"]}, "sft": {"configs": ["a.yaml"]}},
    "arms": {"one": {"configs": ["a.yaml"]}, "two": {"configs": ["a.yaml", "b.yaml"], "baseline": "one"}},
    "report": {"metric": "reward", "contrasts": [["two", "one"]]},
}


class TestStudy:
    def test_a_record_says_the_same_as_the_study_file_it_was_made_from(self):
        study = parse_study(STUDY, "study.yaml", resolved=False)
        written = yaml.safe_load(yaml.safe_dump(study_mapping(study), sort_keys=False))
        assert parse_study(written, "study.yaml", resolved=True) == study
        assert written["schema"] == SCHEMA

    def test_a_record_of_layout_1_is_read(self):
        files = {"a.yaml": {}, "b.yaml": {"x": 1}, "t.yaml": {}}
        study = parse_study(STUDY | {"files": files}, "study.yaml", resolved=True)
        assert study == replace(parse_study(STUDY, "study.yaml", resolved=False), files=files)

    def test_what_is_not_in_the_file_keeps_its_default(self):
        assert parse_study({}, "study.yaml", resolved=True) == StudyRecord()

    @pytest.mark.parametrize("key", ["schema", "files"])
    def test_a_person_does_not_write_what_only_a_record_has(self, key):
        with pytest.raises(RecordError, match=f"unknown key '{key}'"):
            parse_study(STUDY | {key: {}}, "study.yaml", resolved=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": [1]},
        {"name": "../up"},
        {"name": 3},
        {"seeds": 3},
        {"seeds": [1, 2, 1]},
        {"seeds": [True]},
        {"threads_per_run": 0},
        {"threads_per_stage": "two"},
        {"arms": ["a"]},
        {"arms": {1: {"configs": ["a.yaml"]}}},
        {"arms": {"a b": {"configs": ["a.yaml"]}}},
        {"arms": {"a": {"configs": ["a.yaml"]}, "A": {"configs": ["a.yaml"]}}},
        {"arms": {"a": {"configs": "a.yaml"}}},
        {"arms": {"a": {"configs": [3]}}},
        {"arms": {"a": {"config": ["a.yaml"]}}},
        {"arms": {"one": {"configs": ["a.yaml"], "baseline": "one"}}},
        {"arms": {"one": {"configs": ["a.yaml"], "baseline": "zero"}}},
        {"arms": {name: {"configs": ["a.yaml"], "baseline": "cab"["abc".index(name)]} for name in "abc"}},
        {"prepare": ["sft"]},
        {"prepare": {"sft": {"command": "fti", "configs": ["a.yaml"]}}},
        {"report": [1]},
        {"report": {"target": 1}},
        {"report": {"metric": 1}},
        {"report": {"target_fraction": 0}},
        {"report": {"target_fraction": "most"}},
        {"report": {"pair_accuracy": "../other"}},
        {"report": {"pair_accuracy": "prepare/task"}},
        {"report": {"contrasts": "one"}},
        {"report": {"contrasts": [["one", "one"]]}},
        {"report": {"contrasts": [["one", "three"]]}},
    ],
    ids=str,
)
def test_running_and_analysing_refuse_the_same_study_files_in_the_same_words(tmp_path, changes):
    for name in ("a.yaml", "b.yaml", "t.yaml"):
        (tmp_path / name).write_text("x: 1\n")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | changes))
    write_status(tmp_path / run_folder("one", 1), WHOLE)
    with pytest.raises(UserError) as running:
        load_study(tmp_path / "study.yaml")
    with pytest.raises(ReportError) as analysing:
        read_settings(tmp_path, load_runs(tmp_path), load_status(tmp_path))
    said = [str(caught.value) for caught in (running, analysing)]
    assert said[0].startswith(f"{tmp_path}/study.yaml: ") and "\n" not in said[0]
    # Only the keys that a record has besides are named in addition.
    assert said[1].removesuffix(", schema, files").removesuffix(", point") == said[0]


def test_a_run_with_a_newer_record_is_listed_with_that_reason(tmp_path):
    folder = tmp_path / run_folder("one", 1)
    folder.mkdir(parents=True)
    write(folder, {"schema": 9, "state": "finished", "seed": 1})
    (problem,) = load_status(tmp_path)["problem"]
    assert f"{folder}/status.json has layout 9, and this version of grpovi reads layouts 1 to {SCHEMA}" in problem
