"""Grids in a study file: points, tuning seeds, the choice between them, what a dry run says."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.choice import Choice, Score, choose, judged, judged_arms, read_choice
from grpovi_lightning.run_record.layout import RecordError
from grpovi_lightning.run_record.study import parse_study, study_mapping
from grpovi_lightning.study import dry_run, load_study

RATE, BETA = "model.init_args.optimizer.init_args.lr", "model.init_args.loss.init_args.beta"


def arms(values, other=None):
    """An arm and its baseline with a grid each."""
    second = values if other is None else other
    return {
        "plain": {"configs": ["arm.yaml"]} | ({"values": values} if values else {}),
        "other": {"configs": ["other.yaml"], "baseline": "plain"} | ({"values": second} if second else {}),
    }


def study_of(values, other=None, **changes):
    content = {"name": "small", "seeds": [1, 2], "arms": arms(values, other)} | changes
    return parse_study(yaml.safe_load(yaml.safe_dump(content, sort_keys=False)), "study.yaml", resolved=False)


def test_each_point_of_a_grid_is_an_arm_with_a_readable_name_and_is_paired_with_its_equal():
    study = study_of({RATE: ["1e-4", 3e-4], BETA: [0, 0.04]})
    names = [f"@lr={rate},beta={beta}" for rate in ("0.0001", "0.0003") for beta in ("0", "0.04")]
    assert [arm.name for arm in study.arms] == [f"{arm}{name}" for arm in ("plain", "other") for name in names]
    assert [arm.baseline for arm in study.arms] == [None] * 4 + [f"plain{name}" for name in names]
    assert study.arms[1].point.values == {RATE: 1e-4, BETA: 0.04} and study.arms[5].written_baseline == "plain"


def test_a_record_has_the_points_with_their_values_as_data_and_is_read_back_as_the_same_study():
    study = study_of({RATE: ["1e-4", 3e-6], BETA: [0]}, tuning_seeds=[8, 9], report={"contrasts": [["other", "plain"]]})
    record = yaml.safe_load(yaml.safe_dump(study_mapping(study), sort_keys=False))
    point = record["arms"]["other@lr=0.0001,beta=0"]["point"]
    assert point == {"arm": "other", "baseline": "plain", "values": {RATE: 0.0001, BETA: 0}}
    assert record["tuning_seeds"] == [8, 9]
    assert record["report"]["contrasts"] == [
        [f"{arm}@lr={lr},beta=0" for arm in ("other", "plain")] for lr in ("0.0001", "3e-6")
    ]
    assert parse_study(record, "study.yaml", resolved=True) == study


def test_a_knob_that_only_one_arm_has_is_paired_at_equal_values_of_what_both_have():
    study = study_of({RATE: [0.1, 0.2]}, {"model.weights.temperature": [1, 2], RATE: [0.2, 0.3]})
    pairs = {arm.name: arm.baseline for arm in study.arms if arm.written == "other"}
    assert pairs == {
        "other@temperature=1,lr=0.2": "plain@lr=0.2",
        "other@temperature=1,lr=0.3": None,
        "other@temperature=2,lr=0.2": "plain@lr=0.2",
        "other@temperature=2,lr=0.3": None,
    }


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"a.optimizer.init_args.lr": [1], "a.scheduler.init_args.lr": [2]}, "optimizer.lr=1,scheduler.lr=2"),
        ({"model.adjustment": ["a.b.GroupRange"]}, "adjustment=GroupRange"),
        ({"model.path": ["runs/a b.c"]}, "path=runs-a-b.c"),
        ({"x": [None], "y": [True], "z": ["text"]}, "x=null,y=true,z=text"),
        ({"x": ["1e-6"]}, "x=1e-6"),
        ({"x": [100000.0]}, "x=100000"),
    ],
    ids=str,
)
def test_names_of_points_are_short_and_can_be_folders(values, name):
    assert [arm.name for arm in study_of(values).arms] == [f"plain@{name}", f"other@{name}"]


def test_values_reach_the_run_as_arguments_that_yaml_reads_as_what_they_are():
    study = study_of({"a": ["1e-6", 3e-05, 0.04, 5, None, True, "x.Y"]})
    texts = [arm.point.arguments[1] for arm in study.arms if arm.written == "plain"]
    assert [yaml.safe_load(text) for text in texts] == [1e-6, 3e-5, 0.04, 5, None, True, "x.Y"]


GRID = {RATE: [0.1, 0.2]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": arms({})} | {"tuning_seeds": [8]}, "tuning_seeds are given and no arm has `values`"),
        ({"arms": arms(GRID), "tuning_seeds": [2, 8]}, "seed 2 is among tuning_seeds and among seeds"),
        ({"arms": arms(GRID), "tuning_seeds": [8, 8]}, "tuning_seeds: seed 8 is given twice"),
        ({"arms": arms({RATE: []})}, f"arm 'plain': values: {RATE} is [], expected a list of values"),
        ({"arms": arms({RATE: 0.1})}, f"{RATE} is 0.1, expected a list of values such as [1e-4, 3e-4]"),
        ({"arms": arms({RATE: [[1]]})}, f"{RATE}: got [1], expected numbers, text, true, false or null"),
        ({"arms": arms({RATE: [float("nan")]})}, "got nan, expected finite numbers"),
        ({"arms": arms({RATE: ["1e-4", 0.0001]})}, "0.0001 is given twice; keep one of them"),
        ({"arms": arms({RATE: ["a/b", "a b"]})}, "'a/b' and another value would share the folder name 'a-b'"),
        ({"arms": arms({"model.": [1]})}, "'model.' is no setting; expected a name such as model.init_args.group_size"),
        ({"arms": arms({"seed_everything": [1]})}, "seed_everything is set by the study; leave it out"),
        ({"arms": arms({RATE: ["x" * 250]})}, "the name of a run's folder would have 259 characters"),
        ({"arms": arms(GRID, {BETA: [0]})}, f"baseline 'plain' has values for {RATE} and 'other' has none"),
        ({"arms": arms(GRID) | {"plain": {"configs": ["arm.yaml"], "values": None}}}, "values is empty, expected a"),
        ({"arms": arms(GRID) | {"plain": {"configs": ["arm.yaml"], "values": {}}}}, "values is empty, expected settin"),
        (
            {"arms": arms(GRID) | {"third": {"configs": ["arm.yaml"]}}, "report": {"contrasts": [["third", "plain"]]}},
            f"contrast ['third', 'plain']: 'plain' has values for {RATE} and 'third' has none",
        ),
        (
            {"arms": arms(GRID), "report": {"contrasts": [["other@lr=0.1", "plain"]]}},
            "'other@lr=0.1' is no arm; expected of plain, other",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_grid_that_cannot_run_as_written_is_one_line(bench, changes, said):
    bench.write(**changes)
    with pytest.raises(UserError) as caught:
        load_study(bench.study_file)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{bench.study_file}: ")


# The choice.


def scored(study, values):
    names = [arm.name for arm in study.arms]
    return {name: Score({8: value, 9: value}) for name, value in zip(names, values, strict=True)}


def test_the_best_mean_is_chosen_and_of_equal_ones_the_first():
    study = study_of({RATE: [1, 2, 3]}, tuning_seeds=[8, 9])
    scores = scored(study, [0.1, 0.3, 0.3, 0.5, 0.4, 0.1])
    chosen = choose(study, "reward", (0.0, 9.0), scores).chosen
    assert chosen == {"plain": "plain@lr=2", "other": "other@lr=1"}
    scores["other@lr=1"] = replace(scores["other@lr=1"], problem="seed 8: failed")
    assert choose(study, "reward", (0.0, 9.0), scores).chosen["other"] == "other@lr=2"
    for name in ("other@lr=2", "other@lr=3"):
        scores[name] = Score({}, "seed 9: failed")
    with pytest.raises(RecordError, match=r"arm 'other': none of its 3 points can be chosen \(other@lr=1: seed 8: fai"):
        choose(study, "reward", (0.0, 9.0), scores)


def test_judged_are_the_best_points_and_those_with_the_settings_of_the_baseline_s_best():
    study = study_of({RATE: [1, 2]}, {"temperature": [5, 6], RATE: [1, 2]}, tuning_seeds=[8, 9])
    # other: (5, 1), (5, 2), (6, 1), (6, 2); at lr=1, where the baseline is best, temperature 6 is the better one.
    choice = choose(study, "reward", (0.0, 9.0), scored(study, [0.5, 0.1, 0.2, 0.9, 0.3, 0.4]))
    plain, other = judged(study, choice)
    assert (plain.best, plain.equal) == ("plain@lr=1", None)
    assert (other.best, other.equal) == ("other@temperature=5,lr=2", "other@temperature=6,lr=1")
    assert judged_arms(study, choice) == ["plain@lr=1", "other@temperature=5,lr=2", "other@temperature=6,lr=1"]
    assert judged_arms(study, None) == []


def test_an_arm_without_a_grid_is_judged_beside_those_that_have_one():
    study = study_of({}, {RATE: [1, 2]}, tuning_seeds=[8, 9])
    scores = {name: Score({8: 0.1, 9: 0.2}) for name in ("other@lr=1", "other@lr=2")}
    choice = choose(study, "reward", (0.0, 9.0), scores)
    assert judged_arms(study, choice) == ["plain", "other@lr=1"]
    assert judged(study, choice)[1].equal == "other@lr=1"


TUNED = {"tuning_seeds": [8, 9], "seeds": [1, 2], "prepare": None, "arms": arms({"steps": [2, 3]})}


def test_points_run_on_the_tuning_seeds_and_then_what_is_judged_runs_on_the_seeds(bench, capfd):
    bench.write(**TUNED)
    bench.scores = {"plain@steps=2": 0.4, "plain@steps=3": 0.3, "other@steps=2": 0.1, "other@steps=3": 0.2}
    assert bench.compare() == 0
    started = bench.started()
    points = [f"{arm}@steps={steps}" for arm in ("plain", "other") for steps in (2, 3)]
    assert sorted(started[:8]) == sorted(f"{point}/seed_{seed}" for point in points for seed in (8, 9))
    # The baseline's best point has two steps: the other arm is judged there, too.
    assert sorted(started[8:]) == sorted(
        f"{point}/seed_{seed}" for point in ("plain@steps=2", "other@steps=2", "other@steps=3") for seed in (1, 2)
    )
    assert bench.status("other@steps=2", 1)["max_steps"] == 2 and bench.status("other@steps=3", 1)["max_steps"] == 3
    assert read_choice(bench.folder).chosen == {"plain": "plain@steps=2", "other": "other@steps=3"}
    assert "chosen on the tuning seeds: other@steps=3, mean reward over the run 0.2" in capfd.readouterr().out
    assert bench.reported == [bench.folder]


def test_a_choice_that_was_written_stays_though_the_scores_would_now_be_others(bench):
    bench.write(**TUNED)
    bench.scores = {"plain@steps=2": 1.0, "other@steps=2": 1.0}
    bench.compare()
    before = bench.started()
    bench.scores = {"plain@steps=3": 1.0, "other@steps=3": 1.0}
    assert bench.compare(seeds="1,2,3") == 0
    assert sorted(bench.started()[len(before) :]) == ["other@steps=2/seed_3", "plain@steps=2/seed_3"]


def test_a_grid_with_a_further_value_is_tuned_there_and_chosen_anew(bench, capfd):
    bench.write(**TUNED)
    bench.scores = {"plain@steps=2": 1.0, "other@steps=2": 1.0, "plain@steps=4": 2.0}
    bench.compare()
    before = bench.started()
    bench.write(**TUNED | {"arms": arms({"steps": [2, 3, 4]})})
    capfd.readouterr()
    assert bench.compare() == 0
    assert "the choice is made anew: the grids have 6 points now and had 4" in capfd.readouterr().out
    new = [f"{arm}@steps=4/seed_{seed}" for arm in ("plain", "other") for seed in (8, 9)]
    judging = [f"{name}@steps=4/seed_{seed}" for name in ("plain", "other") for seed in (1, 2)]
    assert sorted(bench.started()[len(before) :]) == sorted(new + judging)


def test_a_point_with_a_failed_run_is_not_chosen_and_this_is_said(bench, capfd):
    bench.write(**TUNED | {"arms": arms({"fail_at": [1, 100]})})
    bench.scores = {"plain@fail_at=1": 1.0, "other@fail_at=1": 1.0}
    assert bench.compare() == 1
    error = capfd.readouterr().err
    assert "plain@fail_at=1 cannot be chosen: seed 8 did not finish" in error
    assert f"4 of 8 tuning runs did not finish; to try them again and choose anew, remove {bench.folder}" in error
    assert read_choice(bench.folder).chosen == {"plain": "plain@fail_at=100", "other": "other@fail_at=100"}
    before = bench.started()
    assert bench.compare() == 1 and bench.started() == before, "what could not be chosen is not tried again"


def test_an_arm_without_a_usable_point_ends_the_study_with_one_line_and_a_report(bench, capfd):
    bench.write(**TUNED | {"arms": arms({"fail_at": [1]}, {"fail_at": [1, 100]})})
    assert bench.compare() == 1
    assert "arm 'plain': none of its 1 points can be chosen (plain@fail_at=1: seed 8 did not" in capfd.readouterr().err
    assert bench.reported == [bench.folder] and not (bench.folder / "choice.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2}', '{"schema": 9}'])
def test_a_choice_that_cannot_be_read_is_one_line_and_nothing_runs(bench, text):
    bench.write(**TUNED)
    bench.compare()
    (bench.folder / "choice.json").write_text(text)
    before = bench.started()
    with pytest.raises(UserError, match=r"choice\.json (cannot be read|has layout 9)"):
        bench.compare()
    assert bench.started() == before


def test_seeds_that_judged_cannot_tune_afterwards(bench):
    bench.write(**TUNED | {"tuning_seeds": None})
    bench.compare()
    bench.write(**TUNED | {"tuning_seeds": [1], "seeds": [3]})
    with pytest.raises(UserError, match="seed 1 is to choose points and to judge them, one of the two in earlier runs"):
        bench.compare()


def test_other_tuning_seeds_or_a_value_less_are_a_different_study(bench):
    bench.write(**TUNED)
    bench.compare()
    for changes, said in (
        ({"tuning_seeds": [8]}, r"tuning_seeds are \[8\] now and \[8, 9\] there"),
        ({"arms": arms({"steps": [2]})}, "arm 'plain@steps=3' is there and not in the study now"),
    ):
        bench.write(**TUNED | changes)
        with pytest.raises(UserError, match=said):
            bench.compare()


def test_a_key_that_no_config_of_the_arm_has_is_one_line_with_a_near_name_before_anything_runs(bench):
    bench.write(**TUNED | {"arms": arms({"stepps": [2]})})

    def refuse(arguments):
        if "--stepps" in arguments:
            raise UserError("a long story about Unions")

    with pytest.raises(UserError) as caught:
        bench.compare(preflight=refuse, settings=lambda arguments: ["steps", "rollout"])
    assert str(caught.value) == "arm 'plain': values: its configuration has no stepps (did you mean 'steps'?)"
    assert bench.started() == [] and not bench.output.exists()
    with pytest.raises(UserError, match="arm 'plain@stepps=2': a long story"):
        bench.compare(preflight=refuse, settings=lambda arguments: ["stepps"])


def test_points_of_different_values_may_begin_differently_and_equal_ones_may_not(bench, capfd):
    bench.write(**TUNED | {"tuning_seeds": None, "arms": arms({"rollout": ["a", "b"]})})
    assert bench.compare() == 0
    assert "seed 1: points of different values begin with different completions" in capfd.readouterr().out
    (bench.run_dir("other@rollout=a", 2) / "status.json").write_text(
        json.dumps(bench.status("other@rollout=a", 2) | {"first_rollout": "c"})
    )
    assert bench.compare() == 1
    assert (
        "seed 2: the rollouts of step 0 differ between arms (plain@rollout=a a, other@rollo" in capfd.readouterr().err
    )


# What a dry run says.


def forecast(bench, **options):
    return dry_run(bench.study_file, bench.services, **{"output": bench.output, "jobs": 2} | options)


def test_a_dry_run_lists_what_is_to_do_and_writes_nothing(bench):
    bench.write(**TUNED | {"prepare": {"task": {"command": "task", "configs": ["task.yaml"]}}})
    said = forecast(bench)
    lines = [line.split() for line in said]
    assert lines[0] == ["prepare", "task", "to", "do"]
    assert lines[1] == ["tuning", "plain", "steps=2", "seed", "8", "to", "do"]
    assert sum(line[:1] == ["tuning"] for line in lines) == 8
    judging = [" ".join(line) for line in lines if line[:1] == ["judging"]]
    assert judging[:3] == [
        "judging plain its best point seed 1 to do",
        "judging other its best point seed 1 to do",
        "judging other best point of plain seed 1 to do, unless it is its own",
    ]
    assert "13 to 15 runs: 0 done, 0 to resume, 13 to 15 to do" in said
    assert said[-1] == "time: no finished run to estimate from"
    assert len(bench.preflighted) == 4 and bench.started() == [] and not bench.output.exists()


def test_the_time_is_the_median_of_the_arm_s_finished_runs_over_the_jobs_less_what_was_done(bench):
    bench.write(**TUNED | {"tuning_seeds": None})
    bench.compare()
    for steps, seed, seconds in ((2, 1, 100), (2, 2, 110), (3, 1, 140)):
        path = bench.run_dir("plain@steps=" + str(steps), seed) / "status.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"wall_seconds": seconds}))
    # One run of an arm of which no run says how long it took is to do; of a run, a third is left.
    shutil.rmtree(bench.run_dir("other@steps=2", 1))
    path = bench.run_dir("plain@steps=3", 2) / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "failed", "step": 2}))
    lines = forecast(bench, jobs=1)
    assert any(
        line.split()[-6:] == ["to", "resume", "from", "step", "2", "of"] or "to resume from step 2 of 3" in line
        for line in lines
    )
    assert "8 runs: 6 done, 1 to resume, 1 to do" in lines
    assert "time: about 2 min 27 s with 1 at a time, from the median of finished runs" in lines  # 110 + 110 / 3
    assert "other: 1 min 50 s a run (none of its own has finished: of all arms)" in lines
    assert "plain: 1 min 50 s a run (3 finished)" in lines
    assert "time: about 1 min 50 s with 2 at a time, from the median of finished runs" in forecast(bench, jobs=2)


def test_a_dry_run_of_a_finished_study_says_that_nothing_is_left(bench):
    bench.write(**TUNED)
    bench.scores = {"plain@steps=2": 1.0, "other@steps=2": 1.0}
    bench.compare()
    assert forecast(bench)[-2:] == ["12 runs: 12 done, 0 to resume, 0 to do", "nothing is left to do"]
    assert isinstance(read_choice(bench.folder), Choice)
