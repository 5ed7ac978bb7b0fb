"""Methods over several tasks: statistics against rliable and plain loops, and what the report says of them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from synthetic_runs import line, write_study

from analysis import ReportError, tasks_comparison, write_report
from analysis.several_tasks import profiles, sentences_of
from analysis.task_statistics import (
    estimate_over_tasks,
    interquartile_mean,
    iqm_difference,
    mean_of_tasks,
    probability_of_improvement,
    within,
)
from analysis.tuning import choose_points
from grpovi_lightning.run_record.choice import write_choice

OURS = np.array([[0.2, 0.9, 0.4], [0.5, 1.1, 0.4], [0.7, 0.3, 0.8], [0.1, 0.6, 1.2], [0.45, 0.75, 0.95]])
THEIRS = np.array([[0.3, 0.8, 0.1], [0.2, 0.7, 0.6], [0.5, 0.35, 0.4], [0.15, 0.5, 0.9], [0.6, 0.65, 0.85]])
"""Runs x tasks. What rliable 1.2.0 says of them stands in the first test."""


def test_the_statistics_are_those_of_rliable():
    ours, theirs = list(OURS.T), list(THEIRS.T)
    assert interquartile_mean(*ours) == pytest.approx(0.6111111111111112)
    assert interquartile_mean(*theirs) == pytest.approx(0.5111111111111111)
    assert mean_of_tasks(ours) == pytest.approx(0.6233333333333334)
    assert probability_of_improvement(ours, theirs) == pytest.approx(0.6000000000000001)


def test_the_chance_of_improvement_is_the_mean_of_mann_whitneys_share_and_draws_count_half():
    rng = np.random.default_rng(0)
    ours, theirs = ([rng.integers(0, 5, n).astype(float) for n in sizes] for sizes in ((4, 7), (6, 3)))
    expected = [
        stats.mannwhitneyu(one, two).statistic / (one.size * two.size) for one, two in zip(ours, theirs, strict=True)
    ]
    assert probability_of_improvement(ours, theirs) == pytest.approx(np.mean(expected))


def test_the_interval_over_one_task_is_that_of_students_t_where_the_statistic_is_a_mean():
    values = [OURS[:, 1]]
    found = estimate_over_tasks(values, values, lambda ours, _: mean_of_tasks(ours), 0.05)
    expected = stats.ttest_1samp(values[0], 0.0)
    ends = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=0.03)
    assert found.p == pytest.approx(expected.pvalue, rel=0.2)


def test_seeds_are_drawn_within_their_task_and_together_for_two_methods():
    # Tasks far apart add nothing to the spread, and what both methods have in common cancels.
    tasks = [OURS[:, 0], OURS[:, 1] + 100.0]
    of_mean = estimate_over_tasks(tasks, tasks, lambda ours, _: mean_of_tasks(ours), 0.05)
    expected = math.sqrt(sum(task.var(ddof=1) / 5 for task in tasks)) / 2
    assert (of_mean.high - of_mean.low) / 2 == pytest.approx(stats.t.ppf(0.975, 8) * expected, rel=0.05)
    shifted = [task + 0.25 for task in tasks]
    same = estimate_over_tasks(shifted, tasks, iqm_difference, 0.05)
    assert same.point == pytest.approx(0.25) and math.isnan(same.low)  # no spread at all: no interval


def test_one_seed_of_a_task_has_no_interval_and_an_interval_stays_where_there_are_values():
    values = [np.array([1.0]), np.array([1.0, 2.0])]
    found = estimate_over_tasks(values, values, lambda ours, _: mean_of_tasks(ours), 0.05)
    assert found.point == 1.25 and math.isnan(found.low)
    assert math.isnan(within(found, 0.0, 1.0).low) and math.isnan(within(found, 0.0, 1.0).high)
    wide = estimate_over_tasks([OURS[:, 2]], [THEIRS[:, 2]], probability_of_improvement, 0.001, 0.5)
    assert within(wide, 0.0, 1.0).high <= 1.0 < wide.high


def test_the_interval_of_the_verdict_over_tasks_holds_more_often_than_a_percentile_of_the_bootstrap():
    rng = np.random.default_rng(1)
    hits = {"t": 0, "percentile": 0}
    for _ in range(60):
        tasks = [m + rng.standard_normal(3) for m in (0.0, 0.2, -0.2)]
        found = estimate_over_tasks(tasks, tasks, lambda ours, _: mean_of_tasks(ours), 0.05)
        plain = stats.bootstrap(
            tasks, lambda *of, axis=-1: mean_of_tasks(of), n_resamples=300, method="percentile", random_state=rng
        ).confidence_interval
        hits["t"] += found.low <= 0 <= found.high
        hits["percentile"] += plain.low <= 0 <= plain.high
    assert hits["t"] >= 54 > hits["percentile"]


def study(root: Path, ends: dict[str, list[float]], tasks: dict[str, str] | None = None, **more) -> Path:
    """Runs that rise from 0 straight to the ends of their arm, one a seed; arms `vi-...` have baselines."""
    arms = {arm: {seed: line(0.0, end) for seed, end in enumerate(of, 1)} for arm, of in ends.items()}
    baselines = {arm: arm.replace("vi-", "grpo-") for arm in ends if arm.startswith("vi-")}
    write_study(root, arms, baselines)
    content = yaml.safe_load((root / "study.yaml").read_text())
    for arm, entry in content["arms"].items():
        entry |= {"task": (tasks or {}).get(arm, arm.partition("-")[2])}
    (root / "study.yaml").write_text(yaml.safe_dump(content | more, sort_keys=False))
    return root


ENDS = {
    "grpo-easy": [1.0, 1.2, 1.1],
    "vi-easy": [1.3, 1.35, 1.42],
    "grpo-hard": [0.10, 0.12, 0.11],
    "vi-hard": [0.13, 0.16, 0.12],
}


def test_scores_are_areas_on_the_scale_from_the_baselines_start_to_its_target(tmp_path: Path):
    found = tasks_comparison(study(tmp_path / "s", ENDS))
    assert [method.method for method in found.methods] == ["grpo", "vi"]
    assert [(scale.task, scale.first) for scale in found.scales] == [("easy", 0.0), ("hard", 0.0)]
    final = 0.9  # of a straight line: the mean of its last three values of eleven
    targets = [0.9 * final * np.mean(ENDS[f"grpo-{task}"]) for task in ("easy", "hard")]
    assert [scale.target for scale in found.scales] == pytest.approx(targets)
    for method, expected in (("grpo", found.methods[0]), ("vi", found.methods[1])):
        for task, target in zip(("easy", "hard"), targets, strict=True):
            assert list(expected.scores[task].values()) == pytest.approx(
                [end / 2 / target for end in ENDS[f"{method}-{task}"]], rel=1e-5
            )
    every = sorted(value for of_task in found.methods[1].scores.values() for value in of_task.values())
    assert found.methods[1].iqm.point == pytest.approx(np.mean(every[1:-1]))
    assert found.methods[1].improvement.point == 17.5 / 18  # of nine pairs a task, one draws
    table = found.table()
    assert table["n_runs"].tolist() == [6, 6] and table["baseline"].tolist() == ["", "grpo"]
    assert table.loc[1, "difference"] == pytest.approx(found.methods[1].iqm.point - found.methods[0].iqm.point)


def test_a_profile_is_the_share_of_runs_above_a_score_counted_one_by_one(tmp_path: Path):
    found = tasks_comparison(study(tmp_path / "s", ENDS | {"vi-hard": [0.13, 0.05, 0.12]}))
    for profile, method in zip(profiles(found), found.methods, strict=True):
        for i in (0, 17, 30, 44, 60):
            shares = []
            for seeds in method.scores.values():
                shares.append(sum(score > profile.thresholds[i] for score in seeds.values()) / len(seeds))
            assert profile.shares[i] == pytest.approx(sum(shares) / len(shares))
        assert profile.shares[0] == 1.0 and profile.shares[-1] == 0.0


def test_the_report_has_a_section_a_picture_and_a_table_of_the_tasks(tmp_path: Path):
    page = write_report(study(tmp_path / "s", ENDS)).read_text(encoding="utf-8")
    assert '<section id="tasks">' in page and "Over 2 tasks vi scores higher than grpo: difference" in page
    assert (tmp_path / "s/report/performance_profiles.svg").is_file()
    table = pd.read_csv(tmp_path / "s/report/tasks.csv")
    assert table["method"].tolist() == ["grpo", "vi"]
    assert table.loc[1, "difference_low"] > 0 and table.loc[1, "improvement_high"] == 1.0


def test_without_a_rise_of_the_baseline_there_is_no_scale_and_the_report_says_so(tmp_path: Path):
    folder = study(tmp_path / "s", ENDS | {"grpo-hard": [-0.1, -0.2, -0.1]})
    found = tasks_comparison(folder)
    assert sentences_of(found) == ["The baseline did not rise on the task hard, so its scores have no scale."]
    assert found.methods == () and not (write_report(folder).parent / "tasks.csv").exists()


def test_a_study_without_tasks_has_no_such_section(tmp_path: Path):
    write_study(tmp_path / "s", {"grpo": {1: line(0, 1)}, "vi": {1: line(0, 2)}}, {"vi": "grpo"})
    with pytest.raises(ReportError, match="give its arms a `task`"):
        tasks_comparison(tmp_path / "s")
    assert '<section id="tasks">' not in write_report(tmp_path / "s").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ({"vi-hard": None}, "arm 'vi-hard' has no task and arm 'grpo-easy' has one"),
        ({"vi-hard": "difficult"}, "arm 'vi-hard' has the task 'difficult'; expected a name of method and task"),
        ({"vi-hard": 3}, r"arm 'vi-hard': task is a number \(3\), expected the name of a task"),
    ],
)
def test_tasks_that_do_not_fit_the_arms_are_refused_in_one_line(tmp_path: Path, tasks, words):
    folder = study(tmp_path / "s", ENDS, tasks)
    with pytest.raises(ReportError, match=words):
        tasks_comparison(folder)


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ({"grpo-easy": [1.0], "vi-easy": [1.0]}, "all arms have the task 'easy'"),
        ({"grpo-easy": [1.0], "grpo-hard": [1.0]}, "every task has one arm, of the method 'grpo'"),
        ({"grpo-easy": [1.0], "vi-easy": [1.0], "grpo-hard": [1.0]}, "'vi' has no arm for the task 'hard'"),
        (
            {"grpo-easy": [1.0], "ppo-easy": [1.0], "grpo-hard": [1.0], "ppo-hard": [1.0]},
            "the methods without a baseline are grpo, ppo",
        ),
    ],
)
def test_methods_that_cannot_be_compared_over_the_tasks_are_refused_in_one_line(tmp_path: Path, ends, words):
    with pytest.raises(ReportError, match=words):
        tasks_comparison(study(tmp_path / "s", ends))


def test_only_arms_of_one_task_must_have_begun_alike(tmp_path: Path):
    folder = study(tmp_path / "s", ENDS)
    for arm in ("grpo-hard", "vi-hard"):
        for seed in (1, 2, 3):
            file = folder / f"arms/{arm}/seed_{seed}/status.json"
            file.write_text(file.read_text().replace("ab" * 32, "cd" * 32))
    assert "did not start from the same completions" not in write_report(folder).read_text(encoding="utf-8")
    file = folder / "arms/vi-easy/seed_2/status.json"
    file.write_text(file.read_text().replace("ab" * 32, "cd" * 32))
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.count("did not start from the same completions") == 1 and "Seed 2: the arms did not start" in page


def test_of_a_tuned_study_each_arm_is_at_its_best_point(tmp_path: Path):
    ends = {f"{arm}@lr={lr}": values for arm, values in ENDS.items() for lr in (1, 2)}
    folder = study(tmp_path / "s", {arm.replace("vi-", "x-"): of for arm, of in ends.items()})
    content = yaml.safe_load((folder / "study.yaml").read_text())
    content |= {"seeds": [1, 2], "tuning_seeds": [3], "arms": {}}
    for arm in ENDS:
        name, baseline = arm.replace("vi-", "x-"), {"baseline": arm.replace("vi-", "grpo-")} if "vi-" in arm else {}
        content["arms"][name] = {"configs": ["arm.yaml"], "task": arm.partition("-")[2], "values": {"lr": [1, 2]}}
        content["arms"][name] |= baseline
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ReportError, match="no methods are compared over several tasks: No point has been chosen"):
        tasks_comparison(folder)
    write_choice(folder, choose_points(folder))
    found = tasks_comparison(folder)
    assert [method.method for method in found.methods] == ["grpo", "x"]
    assert [sorted(seeds) for seeds in found.methods[1].scores.values()] == [[1, 2], [1, 2]]
