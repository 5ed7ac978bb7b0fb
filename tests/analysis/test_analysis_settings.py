from pathlib import Path

import pytest
from synthetic_runs import (
    GOLD,
    IDENTITY,
    INCREASE,
    frame,
    line,
    run_folder,
    write_events,
    write_run,
    write_status,
    write_study,
)

from analysis import ReportError, load_runs, load_status
from analysis.settings import Settings, default_metric, read_settings


def settings_of(path: Path, **arguments) -> Settings:
    return read_settings(path, load_runs(path), load_status(path), **arguments)


def test_a_study_says_what_is_compared(tmp_path: Path):
    arms = {"z": {1: line(0, 1)}, "a": {1: line(0, 1)}}
    study = write_study(tmp_path, arms, {"a": "z"}, target_fraction=0.5, pair_accuracy="prepare/reward_model")
    settings = settings_of(study)
    assert (settings.metric, settings.metric_origin) == (GOLD, "named in study.yaml")
    assert (settings.baselines, settings.target_fraction) == ({"a": "z"}, 0.5)
    assert (settings.pair_accuracy, settings.seeds) == ("prepare/reward_model", (1,))
    assert settings.order({"a", "z", "new"}) == ["z", "a", "new"]


def test_bare_runs_are_compared_with_the_arm_without_adjustment(tmp_path: Path):
    write_run(tmp_path / "plain", line(0, 1), seed=1, adjustment="Identity of another name", adjusts=False)
    write_run(tmp_path / "raised", line(0, 1), seed=1, adjustment=INCREASE)
    settings = settings_of(tmp_path)
    assert settings.baselines == {"raised": "plain"} and settings.notes == ()
    assert settings.metric == GOLD


def test_a_fine_tuning_run_among_bare_runs_is_listed_and_compared_with_nothing(tmp_path: Path):
    write_run(tmp_path / "grpo", line(0, 1), seed=1)
    write_run(tmp_path / "grpovi", line(0, 1), seed=1, adjustment=INCREASE)
    write_events(tmp_path / "sft", {"loss": line(1, 0)})
    write_status(tmp_path / "sft", adjustment=None)
    assert settings_of(tmp_path).baselines == {"grpovi": "grpo"}


@pytest.mark.parametrize("plain", [[], ["a", "b"]])
def test_bare_runs_without_one_plain_arm_are_not_compared_and_say_so(tmp_path: Path, plain: list[str]):
    for arm in ("a", "b"):
        write_run(tmp_path / arm, line(0, 1), seed=1, adjustment=IDENTITY if arm in plain else INCREASE)
    settings = settings_of(tmp_path)
    assert settings.baselines == {}
    assert f"the arms that do are: {', '.join(plain) or 'none'}." in settings.notes[0]
    assert settings_of(tmp_path, baseline="b").baselines == {"a": "b"}
    with pytest.raises(ReportError, match="baseline 'c' is no arm; the arms are a, b"):
        settings_of(tmp_path, baseline="c")


@pytest.mark.parametrize(
    ("logged", "taken"),
    [
        (["reward", "eval/reward", GOLD], GOLD),
        (["reward", "eval/reward"], "eval/reward"),
        (["reward", "loss"], "reward"),
    ],
)
def test_the_default_metric_is_held_out_gold_then_held_out_proxy_then_training_reward(logged: list[str], taken: str):
    import pandas as pd

    runs = pd.concat([frame({"a": {1: line(0, 1)}}, metric) for metric in logged])
    metric, why = default_metric(runs)
    assert metric == taken
    assert why == "the default" if taken == GOLD else why.startswith(f"the default where no run logged {GOLD}")


def test_a_metric_that_was_asked_for_must_exist(tmp_path: Path):
    write_run(tmp_path / "a", line(0, 1), seed=1)
    with pytest.raises(
        ReportError, match=rf"no run logged 'golds'; the metrics that exist are eval/num_tokens, .*{GOLD}"
    ):
        settings_of(tmp_path, metric="golds")


def test_runs_that_logged_nothing_at_all_can_still_be_listed(tmp_path: Path):
    write_status(tmp_path / "a", state="failed", error="out of memory")
    assert settings_of(tmp_path).metric == "reward"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("arms: [", "cannot be read: while parsing"),
        ("- 1", "study.yaml is a list, expected a mapping of keys to values"),
        ("arms: {a: {baseline: b}}", "arm 'a': baseline 'b' is not another arm; expected none"),
        ("report: {target_fraction: most}", "report: target_fraction is 'most', expected a number above 0 and up to 1"),
        ("seeds: 3", "seeds is a number (3), expected a list such as [1, 2, 3]"),
        ("schema: 3", "study.yaml has layout 3, and this version of grpovi reads layouts 1 to 2"),
        ("arms: !!python/object/apply:os.system ['true']", "cannot be read: could not determine a constructor"),
    ],
)
def test_a_study_file_that_cannot_be_used_gives_one_line(tmp_path: Path, content: str, message: str):
    write_run(run_folder(tmp_path, "a", 1), line(0, 1), seed=1)
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(ReportError) as caught:
        settings_of(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"target_fraction": 0.0}, "target_fraction must be above 0 and at most 1, got 0.0"),
        ({"baselines": {"a": "a"}}, "arm a is its own baseline; name another arm"),
        ({"baselines": {"a": "b", "b": "c"}}, "arm a is compared with b, which is itself compared with c; a baseline"),
    ],
)
def test_settings_that_come_as_arguments_are_checked_too(wrong: dict, said: str):
    with pytest.raises(ReportError, match=said):
        Settings("study", GOLD, "it was asked for", **wrong)


def test_a_training_metric_can_be_compared(tmp_path: Path):
    write_events(tmp_path / "a", {"reward": line(0, 1), GOLD: line(0, 1)})
    write_status(tmp_path / "a")
    settings = settings_of(tmp_path, metric="reward")
    assert (settings.metric, settings.metric_origin) == ("reward", "it was asked for")
