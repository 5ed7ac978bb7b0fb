import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from realistic_study import write_realistic_study
from scipy import stats
from scipy.integrate import trapezoid
from synthetic_runs import GOLD, run_folder, write_status
from tuned_study import BETA, RATE, level, write_grid_study, write_point, write_realistic_tuned_study

from analysis import ReportError, efficiency_table, load_runs, tuned_comparison, write_report
from analysis.card_numbers import study_part
from analysis.figures import sensitivity_figure
from analysis.study import analyse
from analysis.tuned import sentences_of
from analysis.tuning import choose_points
from grpovi_lightning.run_record.choice import Choice, write_choice
from grpovi_lightning.run_record.layout import RecordError

TUNING, JUDGING = (8, 9), (1, 2, 3)
HEIGHTS = {
    "grpo@lr=0.1": 0.5,
    "grpo@lr=0.2": 0.3,
    "grpovi@lr=0.1": 0.3,
    "grpovi@lr=0.2": 0.6,
}
"""Height of each point's curve; the area is half of it."""


def choose(root: Path) -> Choice:
    choice = choose_points(root)
    write_choice(root, choice)
    return choice


def write_small(root: Path, **kl: float) -> Path:
    """Two arms, two rates; on judging seeds each curve is higher by a hundredth of the seed."""
    write_grid_study(root, {"grpo": None, "grpovi": "grpo"}, {RATE: [0.1, 0.2]}, seeds=JUDGING, tuning_seeds=TUNING)
    for name, height in HEIGHTS.items():
        for seed in TUNING:
            write_point(root, name, seed, height)
    for name in ("grpo@lr=0.1", "grpovi@lr=0.1", "grpovi@lr=0.2"):
        for seed in JUDGING:
            more = 0.02 * seed if name == "grpovi@lr=0.2" else 0.01 * seed
            write_point(root, name, seed, HEIGHTS[name] + more, kl.get(name.partition("@")[0], 0.1))
    return root


@pytest.fixture
def small(tmp_path: Path) -> Path:
    root = write_small(tmp_path / "small")
    choose(root)
    return root


def test_the_best_point_is_that_of_the_largest_mean_area_on_the_tuning_seeds_alone(tmp_path: Path):
    choice = choose(write_small(tmp_path))
    assert choice.chosen == {"grpo": "grpo@lr=0.1", "grpovi": "grpovi@lr=0.2"}
    assert (choice.metric, choice.tuning_seeds, choice.span) == (GOLD, TUNING, (0.0, 100.0))
    for name, height in HEIGHTS.items():
        assert choice.scores[name].areas == {seed: pytest.approx(height / 2) for seed in TUNING}
    # On the judging seeds the other point of the baseline is far better: nobody looks there.
    for seed in JUDGING:
        write_point(tmp_path, "grpo@lr=0.2", seed, 5.0)
    assert choose_points(tmp_path) == choice


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"state": "failed", "step": 40, "error": "not finite"}, "seed 9: failed at step 40 of 100: not finite"),
        (None, "seed 9: planned in study.yaml, but there is no such run"),
        ({"nan": True}, f"seed 9: {GOLD} is nan at step 0"),
    ],
    ids=["failed", "missing", "not finite"],
)
def test_a_point_whose_run_does_not_count_is_not_chosen_and_says_why(tmp_path: Path, status: dict | None, said: str):
    write_small(tmp_path)
    folder = run_folder(tmp_path, "grpovi@lr=0.2", 9)
    if status is None:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    elif "nan" in status:
        for file in folder.glob("events*"):
            file.unlink()
        write_point(tmp_path, "grpovi@lr=0.2", 9, math.nan)
    else:
        write_status(folder, seed=9, adjustment="VarianceIncrease", **status)
    choice = choose_points(tmp_path)
    assert choice.chosen["grpovi"] == "grpovi@lr=0.1"
    assert choice.scores["grpovi@lr=0.2"].problem is not None and said in choice.scores["grpovi@lr=0.2"].problem


def test_areas_are_taken_over_the_steps_that_all_points_cover_and_are_the_report_s(tmp_path: Path):
    write_grid_study(tmp_path, {"a": None}, {RATE: [1, 2]}, seeds=[1], tuning_seeds=[])
    write_point(tmp_path, "a@lr=1", 1, 0.5)
    write_point(tmp_path, "a@lr=2", 1, 0.6)
    found = analyse(tmp_path).sensitivity
    assert found is not None and found.chosen == () and found.seeds == (1,)
    table = efficiency_table(load_runs(tmp_path)).set_index("arm")
    assert {name: score.mean for name, score in found.scores.items()} == pytest.approx(dict(table["auc"]))


def test_each_arm_is_judged_at_its_best_at_equal_settings_and_at_equal_kl_on_seeds_that_chose_nothing(tmp_path: Path):
    root = write_small(tmp_path / "small", grpovi=0.2)
    choose(root)
    tuned = tuned_comparison(root)
    grpo, grpovi = tuned.arms
    assert (tuned.tuning_seeds, tuned.seeds) == (TUNING, JUDGING)
    assert (grpo.point, grpo.baseline, grpo.own.seeds, grpo.label) == ("grpo@lr=0.1", None, JUDGING, "lr=0.1")
    assert (grpovi.point, grpovi.own.baseline) == ("grpovi@lr=0.2", "grpo@lr=0.1")
    own = [(0.6 + 0.02 * seed - 0.5 - 0.01 * seed) / 2 for seed in JUDGING]
    assert grpovi.own.paired.values == pytest.approx(own)
    half = stats.t.ppf(0.975, 2) * np.std(own, ddof=1) / 3**0.5
    assert (grpovi.own.paired.low, grpovi.own.paired.high) == pytest.approx((np.mean(own) - half, np.mean(own) + half))
    assert grpovi.equal is not None and grpovi.equal.arm == "grpovi@lr=0.1"
    assert grpovi.equal.paired.point == pytest.approx((0.3 - 0.5) / 2)
    # GRPOVI's KL rises twice as fast, so at the largest KL of GRPO it is half-way up.
    assert grpovi.equal_kl is not None and grpovi.equal_kl.kl == pytest.approx(0.1)
    at_kl = np.mean([(0.6 + 0.02 * seed) / 2 - (0.5 + 0.01 * seed) for seed in JUDGING])
    assert grpovi.equal_kl.difference.point == pytest.approx(at_kl)
    row = tuned.table().set_index("arm").loc["grpovi"]
    assert row["own_diff"] == pytest.approx(np.mean(own)) and row["tuning_score"] == pytest.approx(0.3)
    assert (row["equal_point"], row["n_seeds"]) == ("grpovi@lr=0.1", 3)


def said(root: Path) -> str:
    ((question, sentences),) = sentences_of(tuned_comparison(root))
    assert question == "Is grpovi better than grpo, each at its best?"
    return " ".join(sentences)


def test_a_gain_between_the_best_points_that_is_gone_at_equal_kl_is_called_a_weaker_penalty(tmp_path: Path):
    root = write_small(tmp_path / "small", grpovi=0.2)
    choose(root)
    text = said(root)
    assert "The loss at equal settings turns round between the best points" in text
    assert "At equal KL the gain is not there, so it cannot be told from a weaker penalty." in text


def test_a_gain_at_equal_settings_that_tuning_takes_away_is_called_a_step_or_a_penalty(tmp_path: Path):
    root = tmp_path / "small"
    write_grid_study(root, {"grpo": None, "grpovi": "grpo"}, {RATE: [0.1, 0.2]}, seeds=JUDGING, tuning_seeds=TUNING)
    rng = np.random.default_rng(0)
    # GRPO is best with the smaller rate, and GRPOVI as good as that with the larger one only.
    for name, height in {"grpo@lr=0.1": 0.5, "grpo@lr=0.2": 0.4, "grpovi@lr=0.1": 0.55, "grpovi@lr=0.2": 0.56}.items():
        for seed in TUNING:
            write_point(root, name, seed, height)
    for seed in JUDGING:
        write_point(root, "grpo@lr=0.1", seed, 0.5)
        write_point(root, "grpovi@lr=0.1", seed, 0.55 + 0.001 * seed)
        write_point(root, "grpovi@lr=0.2", seed, 0.5 + 0.01 * rng.normal())
    choose(root)
    text = said(root)
    assert "no difference can be seen." in text.split("At equal settings")[0]
    assert "The gain at equal settings cannot be seen between the best points, so it cannot be told from a" in text
    assert "step of another size or a weaker penalty." in text


def test_a_gain_that_stays_everywhere_is_said_to(small: Path):
    for seed in JUDGING:
        write_point(small, "grpovi@lr=0.1", seed, 0.9)
    text = said(small)
    assert "The gain between the best points is there at equal KL as well." in text and "turns" not in text


def test_a_best_value_at_the_end_of_the_grid_is_named(tmp_path: Path):
    write_grid_study(tmp_path, {"a": None}, {RATE: [1, 2, 3], BETA: [0, 1]}, seeds=[1], tuning_seeds=[8])
    for rate in (1, 2, 3):
        for beta in (0, 1):
            write_point(tmp_path, f"a@lr={rate},beta={beta}", 8, 0.1 * rate)
    write_point(tmp_path, "a@lr=3,beta=0", 1, 0.3)
    choose(tmp_path)
    (arm,) = tuned_comparison(tmp_path).arms
    assert arm.edges == ("lr=3, the largest of the grid",), "two values have no inside"


def test_the_tables_of_a_tuned_study_are_of_the_judging_seeds_and_of_what_is_judged(small: Path):
    table = efficiency_table(load_runs(small)).set_index("arm")
    assert list(table.index) == ["grpo@lr=0.1", "grpovi@lr=0.1", "grpovi@lr=0.2"]
    assert set(table["n_seeds"]) == {3} and set(table["n_excluded"]) == {0}
    assert dict(table["baseline"]) == {
        "grpo@lr=0.1": "",
        "grpovi@lr=0.1": "grpo@lr=0.1",
        "grpovi@lr=0.2": "grpo@lr=0.1",
    }


def test_before_a_choice_all_points_are_compared_on_the_tuning_seeds_and_the_report_says_so(tmp_path: Path):
    root = write_small(tmp_path / "small")
    page = write_report(root).read_text(encoding="utf-8")
    assert (
        "No point has been chosen yet, so all points are compared on the tuning seeds, and nothing is judged." in page
    )
    assert not (root / "report" / "tuned.csv").exists() and '<section id="grids">' in page
    with pytest.raises(ReportError, match=r"No point has been chosen yet.* `grpovi compare` goes on"):
        tuned_comparison(root)


def test_the_card_of_a_run_that_only_tuned_says_that_it_judges_nothing(small: Path):
    part = study_part(run_folder(small, "grpo@lr=0.2", 8))
    assert part is not None and "it was run to choose a point, and judges nothing" in vars(part).values()
    judged = study_part(run_folder(small, "grpovi@lr=0.2", 1))
    assert judged is not None and len(judged.verdicts) == 1


def test_a_choice_of_another_grid_is_not_taken(small: Path):
    study = yaml.safe_load((small / "study.yaml").read_text())
    study["tuning_seeds"] = [8, 9, 10]
    (small / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    with pytest.raises(ReportError, match=r"choice\.json is not of this study \(the tuning seeds are \[8, 9, 10\] now"):
        tuned_comparison(small)


def test_a_study_without_tuning_seeds_has_nothing_to_choose(tmp_path: Path):
    study = write_realistic_study(tmp_path / "plain")
    for wrong in (tuned_comparison, choose_points):
        with pytest.raises(ReportError, match="has no tuning seeds, so"):
            wrong(study)
    assert '<section id="grids">' not in write_report(study).read_text(encoding="utf-8")


def test_no_usable_point_is_an_error_that_names_the_arm(tmp_path: Path):
    write_grid_study(tmp_path, {"a": None}, {RATE: [1]}, seeds=[1], tuning_seeds=[8])
    write_point(tmp_path, "a@lr=1", 8, 0.5, state="failed", error="no memory")
    with pytest.raises(RecordError, match=r"arm 'a': none of its 1 points can be chosen \(a@lr=1: seed 8: failed"):
        choose_points(tmp_path)
    assert "nothing to draw" in write_report(tmp_path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def realistic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_realistic_tuned_study(tmp_path_factory.mktemp("tuned") / "tuned", choose)


@pytest.fixture(scope="module")
def page(realistic: Path) -> str:
    return write_report(realistic).read_text(encoding="utf-8")


def test_the_report_has_the_tuned_section_with_its_table_and_picture(realistic: Path, page: str):
    section = page[page.index('<section id="grids">') : page.index('<section id="learning">')]
    assert "chosen by the mean area on the seeds 101, 102, 103, and are judged on the seeds 1, 2, 3, 4, 5, 6" in section
    assert section.count('<div class="verdict">') == 2 and "<svg" in section
    body = re.search(r'id="tuned-table".*?<tbody>(.*?)</tbody>', section, re.DOTALL)[1]
    rows = [
        re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]
    assert [row[:2] for row in rows][:2] == [["grpo-group", "lr=0.0003, beta=0"], ["grpovi-group", "lr=0.0001, beta=0"]]
    assert "grpovi-none@lr=0.001,beta=0</code>: seed 102: failed at step 40 of 100" in section
    table = pd.read_csv(realistic / "report" / "tuned.csv")
    assert list(table["arm"]) == ["grpo-group", "grpovi-group", "grpo-none", "grpovi-none"]


def test_runs_that_only_tuned_are_listed_as_such_and_not_as_excluded(page: str):
    assert page.count("for the choice of points") == 71 and "Not counted:" not in page
    assert "36 runs, none of them" in page


def test_the_picture_has_a_panel_an_arm_with_each_mean_each_seed_and_a_ring_at_the_best(realistic: Path):
    found = analyse(realistic).sensitivity
    assert found is not None
    panels = sensitivity_figure(found).axes
    assert [axes.get_title(loc="left").split("\n")[0] for axes in panels] == list(found.arms)
    for axes, (arm, points) in zip(panels, found.arms.items(), strict=True):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0001", "0.0003", "0.001"]
        lines = {line.get_label(): line for line in axes.lines if line.get_label().startswith("beta")}
        for label, line in lines.items():
            drawn = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
            for x, rate in enumerate(("0.0001", "0.0003", "0.001")):
                score = found.scores[f"{arm}@lr={rate},{label}"]
                assert drawn.get(x) == (None if score.problem else score.mean)
        (ring,) = [line for line in axes.lines if line.get_label() == "best point"]
        (best,) = set(points) & set(found.chosen)
        assert list(ring.get_ydata()) == [found.scores[best].mean]
        assert points[best].label in axes.get_title(loc="left")


def test_a_level_curve_has_half_its_height_as_area():
    gold, _ = level(0.5)
    assert trapezoid(list(gold.values()), list(gold)) / 100 == pytest.approx(0.25)
