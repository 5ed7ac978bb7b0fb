"""A tuned study from the command line, as small as it can be: two arms, two points, two updates, real processes."""

import json
import re

import pytest
import yaml
from helpers.own_input import run_config, write_yaml
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from analysis import tuned_comparison
from grpovi_lightning.cli import main
from grpovi_lightning.run_record.choice import read_choice

pytestmark = pytest.mark.slow

RATE = "model.init_args.optimizer.init_args.lr"


@pytest.fixture(scope="module")
def here(inputs):
    """Config files and study.yaml beside one's own input; the study runs in that folder."""
    config = run_config(inputs, inputs / "unused")
    config["trainer"] |= {"max_steps": 2, "val_check_interval": 1}
    write_yaml(inputs / "grpo.yaml", config)
    increase = {"class_path": "grpovi_lightning.adjustment.VarianceIncrease"}
    increase["init_args"] = {"range": {"class_path": "grpovi_lightning.adjustment.RunningRange"}}
    write_yaml(inputs / "grpovi.yaml", {"model": {"init_args": {"adjustment": increase}}})
    write_study(inputs / "study.yaml", RATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inputs)
        yield inputs


def write_study(path, key):
    values = {key: ["1e-6", 1e-2]}
    study = {
        "name": path.stem,
        "tuning_seeds": [8],
        "seeds": [1],
        "arms": {
            "grpo": {"configs": ["grpo.yaml"], "values": values},
            "grpovi": {"configs": ["grpo.yaml", "grpovi.yaml"], "baseline": "grpo", "values": values},
        },
        "report": {"metric": "eval/reward"},
    }
    path.write_text(yaml.safe_dump(study, sort_keys=False))


def compare(*arguments, study="study.yaml"):
    return main(["compare", study, "--output", "runs", *arguments])


@pytest.fixture(scope="module")
def study(here):
    assert compare() == 0
    return here / "runs" / "study"


def test_points_run_with_their_values_and_the_best_of_each_arm_is_judged(study):
    choice = read_choice(study)
    assert choice.metric == "eval/reward" and set(choice.chosen) == {"grpo", "grpovi"}
    for arm in ("grpo", "grpovi"):
        for rate, value in (("1e-6", 1e-6), ("0.01", 1e-2)):
            run = study / "arms" / f"{arm}@lr={rate}" / "seed_8"
            assert json.loads((run / "status.json").read_text())["state"] == "finished"
            config = yaml.safe_load((run / "config.yaml").read_text())
            assert float(config["model"]["init_args"]["optimizer"]["init_args"]["lr"]) == value
    tuned = tuned_comparison(study)
    assert [arm.own.seeds for arm in tuned.arms] == [(1,), (1,)]
    assert tuned.arms[1].own.baseline == choice.chosen["grpo"] and tuned.arms[1].equal_kl is not None
    page = (study / "report" / "index.html").read_text()
    assert "Is grpovi better than grpo, each at its best?" in page
    assert re.search(r"chosen by the mean area on the seeds 8, and are judged on the seeds 1, which", page)


def test_tensorboard_shows_the_points_beside_each_other_by_their_names(study):
    runs = EventMultiplexer().AddRunsFromDirectory(str(study / "arms")).Reload().Runs()
    assert {name for name in runs if name.endswith("seed_8")} == {
        f"{arm}@lr={rate}/seed_8" for arm in ("grpo", "grpovi") for rate in ("1e-6", "0.01")
    }


def test_a_finished_study_is_not_run_again_and_a_dry_run_says_so(study, capsys):
    before = {path: path.stat().st_mtime_ns for path in study.glob("arms/*/*/status.json")}
    assert compare("--dry-run") == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert compare() == 0
    assert {path: path.stat().st_mtime_ns for path in study.glob("arms/*/*/status.json")} == before


def test_further_seeds_have_an_estimate_from_the_runs_that_are_done(study, capsys):
    assert compare("--dry-run", "--seeds", "1,2", "--jobs", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        re.match(r"time: about \d+ s with 1 at a time, from the median of finished runs", line) for line in lines
    )
    assert sum(line.endswith("seed 2  to do") for line in lines) in (2, 3)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (
            "model.init_args.optimizer.init_args.lrr",
            f"has no model.init_args.optimizer.init_args.lrr (did you mean '{RATE}'",
        ),
        (
            "model.init_args.optimzer.init_args.lr",
            f"has no model.init_args.optimzer.init_args.lr (did you mean '{RATE}'",
        ),
        ("modle.init_args.group_size", "has no modle.init_args.group_size (did you mean 'model.init_args.group_size'"),
        ("model.init_args.loss.init_args.epsilon_hi", "(did you mean 'model.init_args.loss.init_args.epsilon_high'"),
    ],
)
def test_a_key_that_the_configuration_has_not_is_one_line_with_a_near_name_and_nothing_is_written(
    here, capsys, key, said
):
    write_study(here / "wrong.yaml", key)
    assert compare("--dry-run", study="wrong.yaml") == compare(study="wrong.yaml") == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("grpovi: error: ")]
    assert len(errors) == 2 and errors[0] == errors[1]
    assert errors[0].startswith("grpovi: error: arm 'grpo': values: its configuration has no ") and said in errors[0]
    assert not (here / "runs" / "wrong").exists()
