"""benchmarks/one_pass_settings.py: what its settings measure, how differences are judged, what it refuses."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats

from grpovi_lightning.rewards.online.selection import Pairs


@pytest.fixture(scope="module")
def quick(tmp_path_factory, run_in):
    """What the whole script printed, its rows, and the names of its files."""
    folder = tmp_path_factory.mktemp("settings")
    printed = run_in("one_pass_settings", folder, "--quick")
    (table,) = folder.glob("runs/benchmarks/one_pass_settings_*.csv")
    assert Image.open(table.with_suffix(".png")).size == (1352, 1144)
    return printed, pd.read_csv(table, keep_default_na=False), table.relative_to(folder)


@pytest.fixture
def runs(scripts):
    return scripts("one_pass_settings")


@pytest.fixture
def results(scripts):
    return scripts("one_pass_settings_results")


def values(rows, setting, metric):
    """(regime, seed, labels) -> (estimator, method) -> value."""
    own = rows[(rows["setting"] == setting) & (rows["metric"] == metric)]
    return {
        key: of.set_index(["estimator", "method"])["value"].to_dict()
        for key, of in own.groupby(["regime", "seed", "labels"])
    }


def test_all_methods_of_a_setting_are_measured_at_the_same_labels_and_seeds(quick):
    rows = quick[1]
    expected = {("active", "accuracy"): 2 * 4, ("passive", "value"): 4 * 4, ("deployment", "regret"): 5 + 1}
    for (setting, metric), methods in expected.items():
        found = {key: of for key, of in values(rows, setting, metric).items() if key[2]}
        assert {len(of) for of in found.values()} == {methods}
        assert {seed for _, seed, _ in found} == {0, 1, 2}


def test_nobody_beats_the_truth_in_what_is_measured_without_noise(quick):
    rows = quick[1]
    for setting, metric, sign in (
        ("active", "accuracy", 1), ("active", "cross-entropy", -1), ("passive", "value", 1)
    ):  # fmt: skip
        found = values(rows, setting, metric)
        for (regime, seed, _), of in found.items():
            truth = found[regime, seed, 0]["", "truth"]
            assert all(sign * value <= sign * truth + 1e-12 for value in of.values())


def test_regret_never_falls_and_never_lies_below_that_of_the_two_best(quick):
    rows = quick[1]
    before = {}
    for (regime, seed, _), of in sorted(values(rows, "deployment", "regret").items(), key=lambda item: item[0]):
        for method, value in of.items():
            assert value >= of["", "truth"] - 1e-9
            assert value >= before.get((regime, seed, method), 0.0)
            before[regime, seed, method] = value


def test_every_setting_is_printed_with_its_verdicts_and_both_files_are_named(quick):
    printed, _, table = quick
    titles = ("Passive: ", "Active: held-out accuracy after 16 labels", "Deployment: regret of the pair in 40 rounds")
    assert all(title in printed for title in titles) and "Means over 3 seeds" in printed
    assert printed.splitlines()[-2:] == [f"written: {table.with_suffix('.png')}", f"written: {table}"]
    assert max(map(len, printed.splitlines())) <= 100


def test_the_same_seed_gives_the_same_rows_and_another_one_others(runs):
    for rows_of in (runs.passive_rows, runs.active_rows, runs.deployment_rows):
        first, again, other = (list(rows_of(runs.QUICK, seed)) for seed in (5, 5, 6))
        assert first == again
        assert [row[-1] for row in first] != [row[-1] for row in other]


def test_features_have_length_one_and_margins_the_spread_that_is_named(runs):
    rng = np.random.default_rng(0)
    for regime in runs.ACTIVE_REGIMES:
        features = regime.completions(rng, 500, 4, 16)
        assert torch.allclose(features.norm(dim=2), torch.ones(500, 4, dtype=torch.float64))
        theta = regime.theta(rng, 16)
        independent = features[:250, 0] - features[250:, 0]  # of different prompts
        assert (independent @ theta).std().item() == pytest.approx(2.0, rel=0.15)
        spread = (features[:, 0] - features[:, 1]).norm(dim=1)
        assert (spread < 0.5).double().mean().item() == pytest.approx(regime.alike, abs=0.1)
        common = (features[:, :, :8] != 0.0).any(dim=2).all(dim=1)
        assert common.double().mean().item() == pytest.approx(1.0 - regime.rare, abs=0.05)


def test_a_pair_has_one_label_whoever_asks_and_in_whatever_order(runs):
    rng = np.random.default_rng(0)
    uniforms = torch.from_numpy(rng.random((4000, 2, 2)))
    rewards = torch.tensor([[1.2, 0.0]], dtype=torch.float64).expand(4000, 2)
    everyone = list(range(4000))
    forward = runs.label(Pairs(everyone, [0] * 4000, [1] * 4000), rewards, uniforms)
    backward = runs.label(Pairs(everyone, [1] * 4000, [0] * 4000), rewards, uniforms)
    assert torch.equal(forward, 1.0 - backward)
    wins = int(forward.sum())
    assert stats.binomtest(wins, 4000, 1.0 / (1.0 + math.exp(-1.2))).pvalue > 1e-4


def test_held_out_scores_are_the_expectation_over_labels(runs):
    margins, chances = [0.3, -2.0, 1.0], [0.6, 0.7, 0.2]
    p = [1.0 / (1.0 + math.exp(-margin)) for margin in margins]
    losses = [-c * math.log(q) - (1.0 - c) * math.log(1.0 - q) for q, c in zip(p, chances, strict=True)]
    found = runs.held_out_scores(torch.tensor(margins).double(), torch.tensor(chances).double())
    assert found["cross-entropy"] == pytest.approx(sum(losses) / 3)
    assert found["accuracy"] == pytest.approx((0.6 + 0.3 + 0.2) / 3)


def test_logged_arms_are_covered_unevenly_and_have_places_of_their_own(runs):
    contexts = torch.from_numpy(np.random.default_rng(0).standard_normal((3000, 2)))
    features, pairs = runs.logged(runs.Sizes(group_size=4), np.random.default_rng(1), contexts)
    assert features.shape == (3000, 4, 8)
    assert torch.equal(features[7, 2], torch.cat([torch.zeros(4), contexts[7], torch.zeros(2)]))
    counts = np.bincount(pairs.first + pairs.second, minlength=4)
    assert list(counts) == sorted(counts, reverse=True) and counts[0] > 2 * counts[3]
    assert all(a != b for a, b in zip(pairs.first, pairs.second, strict=True))


def results_of(results, of_method):
    """Results of one metric: method -> one value a seed."""
    rows = [
        ("active", "even", "one pass", method, seed, 8, "accuracy", value)
        for method, numbers in of_method.items()
        for seed, value in enumerate(numbers)
    ]
    return results.Results(pd.DataFrame(rows, columns=results.COLUMNS))


@pytest.mark.parametrize(
    ("shift", "lower_is_better", "expected"),
    [(1.0, False, "better"), (1.0, True, "worse"), (-1.0, True, "better"), (-1.0, False, "worse"), (0.0, True, None)],
)
def test_verdicts_are_of_paired_differences_with_students_interval(results, shift, lower_is_better, expected):
    rng = np.random.default_rng(0)
    base = 100.0 * rng.standard_normal(12)  # unpaired, nothing could be seen
    noise = rng.standard_normal(12)
    noise -= noise.mean()
    measured = results_of(results, {"random": base, "uncertain": base + shift + 0.5 * noise})
    cell = results.Cell("active", "even", "one pass", "uncertain", 8, "accuracy")
    found = measured.difference(cell, cell._replace(method="random"))
    assert found.point == pytest.approx(shift)
    independent = stats.ttest_1samp(shift + 0.5 * noise, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(independent)
    assert results.verdict(found, lower_is_better=lower_is_better) == (expected or "no difference")


def test_one_seed_has_no_interval_and_is_refused_in_one_line(mistake):
    assert mistake("one_pass_settings", "--seeds", "1") == "--seeds: got 1, expected at least 2"
