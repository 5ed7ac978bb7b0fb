import pytest
import yaml

from grpovi_lightning.errors import UserError
from grpovi_lightning.study import load_study
from grpovi_lightning.study.reading import first_difference
from grpovi_lightning.study.record import check_folder, locked, write_record


@pytest.fixture
def recorded(bench):
    """A folder that holds the study of `bench`."""
    study = load_study(bench.write())
    with locked(bench.folder):
        write_record(bench.folder, study)
    return bench


def differs(bench, **changes):
    bench.write(**changes)
    with pytest.raises(UserError) as caught:
        check_folder(bench.folder, load_study(bench.study_file))
    message = str(caught.value)
    assert message.endswith(f"; give --output another folder, or remove {bench.folder}")
    return message


ARMS = {"plain": {"configs": ["arm.yaml"]}, "other": {"configs": ["arm.yaml", "other.yaml"], "baseline": "plain"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads_per_run": 2}, "threads_per_run is 2 now and 1 there"),
        ({"prepare": {"sft": {"configs": ["sft.yaml"]}}}, "the prepare stages are sft now and task, sft there"),
        (
            {"prepare": {"sft": {"configs": ["sft.yaml"]}, "task": {"command": "task", "configs": ["task.yaml"]}}},
            "the prepare stages are sft, task now and task, sft there",
        ),
        (
            {"prepare": {"task": {"configs": ["task.yaml"]}, "sft": {"configs": ["sft.yaml"]}}},
            "prepare stage 'task': command is 'fit' now and 'task' there",
        ),
        ({"arms": {"plain": ARMS["plain"]}}, "arm 'other' is there and not in the study now"),
        (
            {"arms": ARMS | {"other": {"configs": ["other.yaml"]}}},
            "arm 'other': configs are ['other.yaml'] now and ['arm.yaml', 'other.yaml'] there",
        ),
        (
            {"arms": ARMS | {"other": {"configs": ["other.yaml", "arm.yaml"]}}},
            "arm 'other': other.yaml: note is 'other.yaml' now and 'arm.yaml' there",
        ),
    ],
)
def test_what_differs_from_the_record_is_named(recorded, changes, said):
    assert f"{recorded.folder} holds a different study: {said}" in differs(recorded, **changes)


def test_a_changed_value_deep_in_a_config_is_named_with_its_path(bench):
    bench.config("arm.yaml", model={"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}})
    study = load_study(bench.write())
    with locked(bench.folder):
        write_record(bench.folder, study)
    bench.config("arm.yaml", model={"optimizer": {"lr": 0.2, "betas": [0.9, 0.99]}})
    assert "arm 'plain': arm.yaml: model.optimizer.lr is 0.2 now and 0.1 there" in differs(bench)


def test_comments_layout_and_file_names_are_not_the_study(recorded):
    (recorded.root / "renamed.yaml").write_text("# a comment\n\nnote:   'arm.yaml'\n")
    arms = {name: arm | {"configs": ["renamed.yaml", *arm["configs"][1:]]} for name, arm in ARMS.items()}
    recorded.write(arms=arms)
    assert check_folder(recorded.folder, load_study(recorded.study_file)).seeds == (1, 2)


def test_report_settings_and_baselines_may_change_and_arms_may_be_added(recorded):
    arms = {"plain": ARMS["plain"], "other": {"configs": ARMS["other"]["configs"]}, "third": ARMS["plain"]}
    study = load_study(recorded.write(arms=arms, report={"target_fraction": 0.5}, seeds=[7]))
    kept = check_folder(recorded.folder, study)
    write_record(recorded.folder, kept)
    record = yaml.safe_load((recorded.folder / "study.yaml").read_text())
    assert list(record["arms"]) == ["plain", "other", "third"]
    assert "baseline" not in record["arms"]["other"]
    assert record["report"] == {"target_fraction": 0.5}
    assert record["seeds"] == [1, 2, 7]


def test_a_folder_of_something_else_is_refused(bench, tree):
    bench.folder.mkdir(parents=True)
    (bench.folder / "thesis.tex").write_text("ten years of work")
    before = tree(bench.output)
    assert "holds 'thesis.tex' but no study.yaml, so it is not a study" in differs(bench)
    assert tree(bench.output) == before


def test_a_file_where_the_folder_should_be_is_refused(bench):
    bench.output.mkdir()
    bench.folder.write_text("")
    assert "is a file, expected the folder of a study" in differs(bench)


def test_a_record_of_a_newer_layout_is_refused_by_its_name_and_one_without_a_layout_is_read(recorded, tree):
    file = recorded.folder / "study.yaml"
    record = yaml.safe_load(file.read_text())
    assert record.pop("schema") == 2
    file.write_text(yaml.safe_dump(record, sort_keys=False))
    assert check_folder(recorded.folder, load_study(recorded.study_file)).seeds == (1, 2)
    file.write_text(yaml.safe_dump({"schema": 3} | record, sort_keys=False))
    before = tree(recorded.folder)
    assert f"{file} has layout 3, and this version of grpovi reads layouts 1 to 2" in differs(recorded)
    assert tree(recorded.folder) == before


@pytest.mark.parametrize("text", ["name: small", "name: small\nthreads_per_run: 1\nprepare: 3", "- 1"])
def test_a_study_file_that_compare_did_not_write_is_refused(bench, text):
    bench.folder.mkdir(parents=True)
    (bench.folder / "study.yaml").write_text(text)
    bench.write()
    with pytest.raises(UserError, match=r"is not a record|expected a mapping"):
        check_folder(bench.folder, load_study(bench.study_file))


def test_a_folder_that_cannot_be_made_is_one_line(bench):
    bench.output.write_text("a file in the way")
    bench.write()
    with pytest.raises(UserError, match=r"--output: cannot write to .* is not a folder"):
        bench.compare()


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1}, {"a": True}, "a is True now and 1 there"),
        ({"a": 1}, {"a": 1.0}, "a is 1.0 now and 1 there"),
        ({"a": float("nan")}, {"a": float("nan")}, None),
        ({"a": [1, 2]}, {"a": [2, 1]}, "a is [2, 1] now and [1, 2] there"),
        ({"a": {"b": 1}}, {"a": {}}, "a.b is absent now and 1 there"),
        ({"a": None}, {}, "a is absent now and None there"),
        ({"a": {"b": 1}}, {"a": 2}, "a is 2 now and {'b': 1} there"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, None),
    ],
)
def test_the_first_difference_of_two_configs(there, here, said):
    assert first_difference(there, here) == said
