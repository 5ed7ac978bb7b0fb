"""The rules at their thresholds, the curves they read, and the page that lists them."""

from pathlib import Path

import numpy as np
import pytest

from grpovi_lightning.diagnoses import RULES, Series, diagnose, kept_checkpoint, logged, not_judged

PAGE = (Path(__file__).parents[2] / "docs" / "diagnoses.md").read_text()


def constant(value, n=30):
    return Series.of(range(n), [value] * n)


def kinds(series, **settings):
    rising = {"reward": Series.of(range(30), np.linspace(0.0, 1.0, 30))}
    return [finding.kind for finding in diagnose(logged(rising | series, **settings))]


@pytest.mark.parametrize(
    ("tag", "threshold", "kind"),
    [
        ("frac_reward_zero_std", 0.5, "groups without reward variance"),
        ("rewards/a/variance_share", 0.95, "a reward component dominates"),
        ("advantages/abs_max", 10.0, "large advantages"),
        ("adjustment/sign_flips", 0.4, "advantages that change sign"),
        ("completions/clipped_ratio", 0.5, "completions cut off"),
        ("kl", 1.0, "KL run-away"),
        ("eval/kl", 1.0, "KL run-away"),
        ("clip_ratio/region_mean", 0.5, "clipped ratios"),
    ],
)
def test_a_finding_begins_above_its_threshold(tag, threshold, kind):
    assert kinds({tag: constant(threshold)}, adjusts=True) == []
    assert kinds({tag: constant(1.01 * threshold)}, adjusts=True) == [kind]


def test_entropy_has_collapsed_below_a_quarter_of_its_start():
    start = [2.0] * 3
    assert kinds({"entropy": Series.of(range(30), start + [0.51] * 27)}) == []
    assert kinds({"entropy": Series.of(range(30), start + [0.49] * 27)}) == ["entropy collapse"]


@pytest.mark.parametrize(("correlation", "end"), [(0.6, 14.0), (-0.6, 8.0)])
def test_length_follows_reward_where_both_go_the_same_way(correlation, end):
    lengths = {"completions/mean_length": Series.of(range(30), np.linspace(10.0, end, 30))}
    found = [
        kinds(lengths | {"completions/length_reward_correlation": constant(sign * correlation)}) for sign in (1, -1)
    ]
    assert found == [["length follows reward"], []]


def test_a_fault_of_few_steps_is_no_finding_and_one_of_ten_is():
    def during(n):
        return {"kl": Series.of(range(30), [1.5 if step < n else 0.0 for step in range(30)])}

    assert kinds(during(6)) == []
    assert kinds(during(10)) == ["KL run-away"]


def test_two_measurements_are_not_judged_and_three_are():
    assert [kinds({"kl": constant(5.0, n)}) for n in (2, 3)] == [[], ["KL run-away"]]


def test_what_is_not_finite_is_left_out():
    assert kinds({"kl": Series.of(range(30), [float("nan"), float("inf"), *[0.1] * 28])}) == []


def test_a_plateau_is_judged_at_the_end_alone():
    run = logged({"reward": Series.of(range(40), [min(step, 10) for step in range(40)])})
    assert [finding.kind for finding in diagnose(run)] == ["plateau"]
    assert diagnose(run, ended=False) == []


def test_the_noise_of_a_line_is_what_scatters_about_it():
    noise = np.random.default_rng(0).normal(0.0, 0.3, 4000)
    assert Series.of(range(4000), np.linspace(0.0, 50.0, 4000) + noise).noise == pytest.approx(0.3, rel=0.05)
    assert Series.of(range(9), range(9)).noise == 0.0


@pytest.mark.parametrize("n", [3, 10, 25])
def test_the_worst_stretch_is_that_of_a_plain_loop(n):
    values = np.random.default_rng(n).normal(size=n)
    size = min(10, n)
    means = [values[i : i + size].mean() for i in range(n - size + 1)]
    best = int(np.argmax(means))
    found = Series.of(range(5, 5 + n), values).highest(-np.inf)
    assert found is not None
    assert (found.first, found.last, found.mean) == (5 + best, 4 + best + size, pytest.approx(max(means)))


def test_what_is_not_logged_is_not_judged():
    run = logged({"reward": constant(1.0), "kl": constant(0.1)})
    missing = not_judged(run)
    assert missing["entropy collapse"] == ("entropy",)
    assert "KL run-away" not in missing and "plateau" not in missing
    assert missing["over-optimisation"] == ("eval/rewards/<observed>/mean",)


def test_a_run_of_one_component_lacks_no_shares():
    one, two = ({f"rewards/{name}/mean": constant(0.5) for name in names} for names in ("a", "ab"))
    kind = "a reward component dominates"
    assert kind not in not_judged(logged({"reward": constant(1.0)} | one))
    assert kind in not_judged(logged({"reward": constant(1.0)} | two))


@pytest.mark.parametrize("name", ["step=30.ckpt", "epoch=0-step=30.ckpt", "step=30-v1.ckpt"])
def test_checkpoints_are_found_by_their_step(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    for file in (name, "last.ckpt", "step=130.ckpt"):
        (tmp_path / "checkpoints" / file).touch()
    assert kept_checkpoint(tmp_path, 30) == tmp_path / "checkpoints" / name
    assert kept_checkpoint(tmp_path, 15, updates=2) == tmp_path / "checkpoints" / name
    assert kept_checkpoint(tmp_path, 3) is None


def test_the_page_has_each_rule_with_its_threshold_source_and_remedy():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
    listed = {row[0]: row[2:] for row in rows if len(row) == 5}
    for rule in RULES:
        assert listed[rule.kind] == [rule.threshold, rule.source, rule.remedy]
