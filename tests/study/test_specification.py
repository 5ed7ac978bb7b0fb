import re
from pathlib import Path

import pytest

from grpovi_lightning.errors import UserError
from grpovi_lightning.study import load_study


def refused(bench, **options):
    """The one line that a study file is refused with."""
    with pytest.raises(UserError) as caught:
        load_study(bench.study_file, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{bench.study_file}: ")


def test_a_study_file_becomes_stages_and_arms_in_its_order(bench):
    study = load_study(bench.write(report={"metric": "reward", "pair_accuracy": "prepare/sft"}))
    assert (study.name, study.seeds, study.threads_per_run) == ("small", (1, 2), 1)
    assert [(stage.name, stage.command) for stage in study.prepare] == [("task", "task"), ("sft", "fit")]
    assert [(arm.name, arm.baseline) for arm in study.arms] == [("plain", None), ("other", "plain")]
    (config,) = study.prepare[1].configs
    assert (config.name, config.path, config.content) == ("sft.yaml", bench.root / "sft.yaml", {"note": "sft.yaml"})
    assert study.report == {"metric": "reward", "pair_accuracy": "prepare/sft"}


@pytest.mark.parametrize("seeds", ["3,4", " 3, 4 ", [3, 4], (3, 4)])
def test_seeds_of_the_command_line_replace_those_of_the_file(bench, seeds):
    assert load_study(bench.write(seeds=None), seeds=seeds).seeds == (3, 4)


def test_a_missing_study_file_names_the_one_that_was_meant(bench):
    bench.write()
    bench.study_file = bench.root / "stdy.yaml"
    assert f"study file {bench.study_file} does not exist (did you mean '{bench.root}/study.yaml'?)" in refused(bench)


def test_a_folder_instead_of_a_study_file_is_refused(bench):
    bench.study_file = bench.root
    assert "is a folder, expected a study file" in refused(bench)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not valid YAML"),
        ("- a", "holds a list, expected a mapping"),
        ("", "is empty, expected a mapping"),
        ("name: a\nname: b", "key 'name' appears twice in one mapping (again on line 2)"),
        ("arms:\n  a: {configs: []}\n  b: {}\n  a: {}", "key 'a' appears twice in one mapping (again on line 4)"),
        ("1: 2", "key 1 is a number, expected text"),
    ],
)
def test_text_that_is_no_study_is_refused(bench, text, said):
    bench.study_file.write_text(text)
    assert said in refused(bench)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"seed": [1]},
            "unknown key 'seed' (did you mean 'seeds'?); expected one of name, seeds, tuning_seeds",
        ),
        ({"name": None}, "no name; add `name: ...`"),
        ({"name": "../up"}, "name '../up' cannot name a folder"),
        ({"name": "a."}, "name 'a.' cannot name a folder"),
        ({"name": 3}, "name is a number (3), expected text"),
        ({"seeds": None}, "no seeds; add `seeds: [1, 2, 3]` to it or give --seeds 1,2,3"),
        ({"seeds": []}, "no seeds"),
        ({"seeds": 3}, "seeds is a number (3), expected a list"),
        ({"seeds": [1, 2, 1]}, "seed 1 is given twice"),
        ({"seeds": [1, -2]}, "got -2, expected whole numbers from 0 to 4294967295"),
        ({"seeds": [True]}, "got True, expected whole numbers"),
        ({"seeds": [1.0]}, "got 1.0, expected whole numbers"),
        ({"threads_per_run": 0}, "threads_per_run is 0, expected a whole number of at least 1"),
        ({"arms": None}, "no arms; add"),
        ({"arms": ["a"]}, "arms is a list, expected a mapping"),
        ({"arms": {"a b": {"configs": ["arm.yaml"]}}}, "arm 'a b' cannot name a folder"),
        ({"arms": {"a": {"configs": ["arm.yaml"]}, "A": {"configs": ["arm.yaml"]}}}, "'a' and 'A' are one folder"),
        ({"arms": {"a": {}}}, "arm 'a': configs is empty, expected a list of YAML files"),
        ({"arms": {"a": {"configs": "arm.yaml"}}}, "arm 'a': configs is text, expected a list"),
        ({"arms": {"a": {"configs": [3]}}}, "arm 'a': config 3 is a number, expected the path"),
        ({"arms": {"a": {"config": ["arm.yaml"]}}}, "arm 'a': unknown key 'config' (did you mean 'configs'?)"),
        (
            {"arms": {"a": {"configs": ["othr.yaml"]}}},
            "arm 'a': config file 'ROOT/othr.yaml' does not exist (did you mean 'ROOT/other.yaml'?)",
        ),
        (
            {"arms": {"ab": {"configs": ["arm.yaml"]}, "b": {"configs": ["arm.yaml"], "baseline": "aab"}}},
            "arm 'b': baseline 'aab' is not another arm (did you mean 'ab'?); expected one of ab",
        ),
        ({"arms": {"a": {"configs": ["arm.yaml"], "baseline": "a"}}}, "baseline 'a' is not another arm; expected none"),
        (
            {
                "arms": {
                    "a": {"configs": ["arm.yaml"]},
                    "b": {"configs": ["arm.yaml"], "baseline": "a"},
                    "c": {"configs": ["arm.yaml"], "baseline": "b"},
                }
            },
            "arm 'c': baseline 'b' has a baseline itself; expected an arm without one: a",
        ),
        (
            {"prepare": {"sft": {"command": "fti", "configs": ["sft.yaml"]}}},
            "prepare stage 'sft': unknown command 'fti' (did you mean 'fit'?); expected one of fit, task",
        ),
        ({"prepare": ["sft"]}, "prepare is a list, expected a mapping"),
        ({"report": {"target": 1}}, "report: unknown key 'target'"),
        ({"report": {"metric": 1}}, "report: metric is a number, expected the name of a logged scalar"),
        ({"report": {"target_fraction": 1.5}}, "target_fraction is 1.5, expected a number above 0 and up to 1"),
        (
            {"report": {"pair_accuracy": "prepare/stf"}},
            "pair_accuracy 'prepare/stf' is not a prepared run (did you mean 'prepare/sft'?); expected one of",
        ),
    ],
)
def test_a_mistake_is_one_line_with_what_was_expected(bench, changes, said):
    bench.write(**changes)
    message = refused(bench)
    assert said.replace("ROOT", str(bench.root)) in message


@pytest.mark.parametrize("seeds", ["1,x", "1;2", "-1", "1,,2", "", "1.5"])
def test_seeds_on_the_command_line_that_are_no_numbers_are_refused(bench, seeds):
    bench.write()
    assert refused(bench, seeds=seeds).startswith("--seeds is " + repr(seeds))


def test_a_config_file_that_is_not_yaml_is_refused_by_name(bench):
    bench.write()
    Path(bench.root / "other.yaml").write_text("a: b: c")
    assert re.match(rf"{re.escape(str(bench.root))}/other.yaml is not valid YAML", refused(bench))


def test_interpolations_and_merges_in_a_config_are_left_as_they_are(bench):
    bench.write()
    text = "base: &base {lr: 1}\nmodel: {<<: *base, path: '${study_dir}/prepare/sft/model'}\n"
    (bench.root / "other.yaml").write_text(text)
    content = load_study(bench.study_file).arms[1].configs[1].content
    assert content["model"] == {"lr": 1, "path": "${study_dir}/prepare/sft/model"}


@pytest.mark.parametrize(
    ("contrasts", "said"),
    [
        ("plain", "contrasts is text, expected a list"),
        ([["plain"]], "contrast ['plain'], expected two different arms"),
        ([["plain", "plain"]], "expected two different arms"),
        ([["plain", "othr"]], "'othr' is no arm (did you mean 'other'?); expected of plain, other"),
    ],
)
def test_contrasts_are_pairs_of_different_arms(bench, contrasts, said):
    assert load_study(bench.write(report={"contrasts": [["other", "plain"]]})).report["contrasts"]
    bench.write(report={"contrasts": contrasts})
    assert said in refused(bench)
