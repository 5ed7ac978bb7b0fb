import io
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from synthetic_runs import GOLD, line, ramp, run_folder, write_run, write_study, write_study_yaml

from analysis import print_report, write_report
from analysis.curves import Curve
from analysis.figures import Panel, labels_figure
from analysis.online import COLUMNS, QUANTITIES, against_labels
from analysis.study import analyse
from analysis.style import arm_styles

ROUNDS = range(0, 90, 10)
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
PAIR = {"learned": "frozen"}


def over(steps, values) -> dict[int, float]:
    return dict(zip(steps, values, strict=True))


def learning(seed: int) -> dict[str, dict[int, float]]:
    """Nine rounds of four labels, whose summaries are worked out by hand below; two seeds."""
    first = seed == 1
    return {
        "online/labels": over(ROUNDS, range(4, 40, 4)),
        "online/unanswered": over(ROUNDS, [0] * 8 + [1]),
        "online/pair_accuracy": over(ROUNDS, [0.0] * 6 + ([0.5, 0.75, 1.0] if first else [0.25, 0.5, 0.75])),
        "online/cross_entropy": over(ROUNDS, [9.0] * 6 + ([0.25, 0.5, 0.75] if first else [0.5, 0.5, 0.5])),
        "online/update_seconds": over(ROUNDS, [8, 1, 2, 0, 0, 0, 4, 9, 8] if first else [1] * 9),
        "online/state_bytes": over(ROUNDS, [500 * k for k in range(1, 10)] if first else [1500] * 9),
        "online/regret": over(ROUNDS, [math.nan] * 3 + [0.25, 0.5] * 3 if first else [math.nan] * 9),
        "rewards/gold/pair_agreement": agreement(0.5, 0.75 if first else 1.0),
        "eval/online/labels": over(range(0, 101, 10), [*range(0, 40, 4), 36]),
        "eval/online/unanswered": over(range(0, 101, 10), [0] * 10 + [3]),
    }


def agreement(first: float, last: float) -> dict[int, float]:
    """Ten steps at `first`, five at 0, ten at `last`, and a step in between that has no pair to order."""
    return over(range(26), [first] * 10 + [0.0] * 5 + [math.nan] + [last] * 10)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("online") / "study"
    write_study_yaml(root, ["frozen", "learned"], PAIR, [1, 2])
    for seed in (1, 2):
        more = {"rewards/gold/pair_agreement": agreement(0.75, 0.25)}
        write_run(run_folder(root, "frozen", seed), ramp(20, height=seed), seed=seed, more=more)
        write_run(run_folder(root, "learned", seed), ramp(20, height=2 * seed), seed=seed, more=learning(seed))
    write_report(root)
    return root


@pytest.fixture(scope="module")
def page(study: Path) -> str:
    return (study / "report" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table(study: Path) -> pd.DataFrame:
    return pd.read_csv(study / "report" / "online.csv").set_index("arm")


def section(page: str) -> str:
    return page[page.index('<section id="online">') : page.index('<section id="runs">')]


def cells(page: str) -> dict[str, list[str]]:
    """Arm -> the texts of its cells, a bar between the large and the small print."""
    body = re.search(r'id="online-table".*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert body is not None
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in body.group(1).split("</tr>")[:-1]]
    texts = [[re.sub(r"<[^>]+>", "", re.sub(r"<small[^>]*>", "|", text)).strip() for text in row] for row in rows]
    return {row[0]: row[1:] for row in texts}


def test_the_csv_holds_the_numbers_worked_out_by_hand(table: pd.DataFrame):
    assert ["arm", *table.columns] == COLUMNS
    learned = table.loc["learned"]
    expected = {"labels": 36, "unanswered": 3, "pair_accuracy": (0.75 + 0.5) / 2, "cross_entropy": 0.5}
    expected |= {"agreement_first": 0.5, "agreement_last": (0.75 + 1) / 2, "regret": 0.375, "final": (2 + 4) / 2}
    # Seed 1: medians 2 of (8, 1, 2) and 8 of (4, 9, 8), ratio 4. Seed 2: 1 and 1. Geometric mean of 4 and 1: 2.
    expected |= {"seconds_early": 1.5, "seconds_late": 4.5, "seconds_ratio": 2, "bytes_first": 1000, "bytes_last": 3000}
    assert learned[list(QUANTITIES)].to_dict() == pytest.approx(expected)
    seeds = {"pair_accuracy": (0.5, 0.75), "agreement_last": (0.75, 1), "final": (2, 4)}
    ends = {name: stats.ttest_1samp(values, 0).confidence_interval(0.95) for name, values in seeds.items()}
    ends["seconds_ratio"] = np.exp(stats.ttest_1samp(np.log([4, 1]), 0).confidence_interval(0.95))
    for name, interval in ends.items():
        assert (learned[f"{name}_low"], learned[f"{name}_high"]) == pytest.approx(interval), name
    assert (learned["n_seeds"], learned["observed"]) == (2, "gold")


def test_an_arm_that_was_frozen_used_no_label_and_has_empty_cells_beside_its_agreement_and_final_value(
    page: str, table: pd.DataFrame
):
    frozen = table.loc["frozen"]
    assert frozen[["labels", "agreement_first", "agreement_last", "final"]].tolist() == [0, 0.75, 0.25, 1.5]
    measured = {"labels", "agreement_first", "agreement_last", "final"}
    assert frozen[[name for name in QUANTITIES if name not in measured]].isna().all()
    agreement_cell = "0.750 → 0.250|last: 0.250 to 0.250"
    assert cells(page)["frozen"] == ["0", DASH, DASH, agreement_cell, DASH, DASH, DASH, f"1.50|{MINUS}4.85 to 7.85"]


def test_the_page_shows_the_table_and_says_how_many_seeds_have_a_number(page: str, table: pd.DataFrame):
    assert cells(page)["learned"] == [
        "36|3 unanswered",
        f"0.625|{MINUS}0.963 to 2.21",
        "0.500|0.500 to 0.500",
        f"0.500 → 0.875|last: {MINUS}0.713 to 2.46",
        "1.50 → 4.50|2.00 times: 0.000299 to 13,365",
        "1.00 → 3.00",
        "0.375|1 of 2 seeds",
        f"3.00|{MINUS}9.71 to 15.7",
    ]
    assert table.loc["learned", "regret_seeds"] == 1, "the regret of seed 2 is NaN throughout"
    assert math.isnan(table.loc["learned", "regret_low"])
    assert "They are not measured on a fixed set" in section(page)


def test_every_quantity_has_a_picture_beside_the_page_and_in_it(study: Path, page: str):
    names = ("metric", "pair_accuracy", "cross_entropy", "regret", "seconds", "state")
    assert {f"online_{name}.svg" for name in names} == {file.name for file in (study / "report").glob("online_*.svg")}
    assert section(page).count("<figure>") == len(names)
    for name in names:
        svg = (study / "report" / f"online_{name}.svg").read_text(encoding="utf-8")
        assert ">learned</text>" in svg
        assert (">frozen</text>" in svg) == (name == "metric"), (
            "a frozen arm has a level there, and no labels elsewhere"
        )
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_same_runs_give_the_same_bytes(study: Path, page: str):
    before = {file.name: file.read_bytes() for file in (study / "report").iterdir()}
    write_report(study)
    assert {file.name: file.read_bytes() for file in (study / "report").iterdir()} == before


def test_a_study_whose_reward_models_are_frozen_has_no_section(tmp_path: Path):
    page = write_report(write_study(tmp_path, {"a": {1: ramp(50)}, "b": {1: ramp(60)}}, {"b": "a"})).read_text()
    assert 'id="online"' not in page and not (tmp_path / "report" / "online.csv").exists()


def test_a_reward_model_that_is_trained_by_itself_is_no_online_one(tmp_path: Path):
    write_run(tmp_path / "head", ramp(20), seed=1, more={"online/state_bytes": line(8, 8)})
    assert 'id="online"' not in write_report(tmp_path).read_text()


def test_a_run_that_does_not_count_does_not_touch_the_numbers(tmp_path: Path):
    write_run(run_folder(tmp_path, "learned", 1), ramp(20), seed=1, more=learning(1))
    write_report(tmp_path)
    clean = (tmp_path / "report" / "online.csv").read_text()
    write_run(run_folder(tmp_path, "learned", 2), ramp(20), seed=2, more=learning(2), state="failed", error="gone")
    write_report(tmp_path)
    assert (tmp_path / "report" / "online.csv").read_text() == clean


def test_learning_that_only_runs_which_do_not_count_did_is_no_section(tmp_path: Path):
    write_run(run_folder(tmp_path, "frozen", 1), ramp(20), seed=1)
    write_run(run_folder(tmp_path, "learned", 1), ramp(20), seed=1, more=learning(1), state="failed", error="gone")
    assert 'id="online"' not in write_report(tmp_path).read_text()


def test_an_arm_without_a_run_that_counts_has_no_number_of_labels(tmp_path: Path):
    write_study_yaml(tmp_path, ["lost", "learned"], {}, [1])
    write_run(run_folder(tmp_path, "learned", 1), ramp(20), seed=1, more=learning(1))
    assert set(cells(write_report(tmp_path).read_text())["lost"]) == {DASH}


def test_an_oracle_that_never_answered_leaves_no_labels_and_its_questions(tmp_path: Path):
    silent = {"eval/online/labels": line(0, 0), "eval/online/unanswered": line(0, 1500)}
    write_run(run_folder(tmp_path, "silent", 1), ramp(20), seed=1, more=silent)
    row = cells(write_report(tmp_path).read_text())["silent"]
    assert row == ["0|1,500 unanswered", DASH, DASH, DASH, DASH, DASH, DASH, "1.00"]


def test_a_round_comes_after_the_evaluation_at_its_step(tmp_path: Path):
    more = {"online/labels": {0: 4, 100: 8}, "eval/online/labels": {0: 0, 100: 4}}
    write_run(run_folder(tmp_path, "learned", 1), ramp(20), seed=1, more=more)
    (arm,) = analyse(tmp_path).online
    assert arm.labels.point == 8


def test_one_round_has_no_ratio_of_late_to_early(tmp_path: Path):
    more = {"online/labels": {0: 4}, "online/update_seconds": {0: 0.5}}
    write_run(run_folder(tmp_path, "learned", 1), ramp(20), seed=1, more=more)
    (arm,) = analyse(tmp_path).online
    assert (arm.seconds_early.point, arm.seconds_late.point) == (0.5, 0.5)
    assert math.isnan(arm.seconds_ratio.point) and arm.agreement_first.values == ()


def test_names_of_arms_and_rewards_are_text(tmp_path: Path):
    arm, reward = "<img src=x> $x^2$ & co", "<b>gold</b>"
    more = learning(1) | {f"rewards/{reward}/pair_agreement": agreement(0.5, 0.75)}
    del more["rewards/gold/pair_agreement"]
    write_run(run_folder(tmp_path, arm, 1), ramp(20), seed=1, more=more)
    write_run(run_folder(tmp_path, "frozen", 1), ramp(30), seed=1)
    page = write_report(tmp_path, baseline="frozen").read_text()
    assert "<img" not in page and reward not in page
    assert "&lt;img src=x&gt; $x^2$ &amp; co" in cells(page)
    assert "the observed <code>&lt;b&gt;gold&lt;/b&gt;</code> does" in section(page)
    for svg in (tmp_path / "report").glob("*.svg"):
        assert "<img" not in svg.read_text() and reward not in svg.read_text()


def test_the_agreement_is_with_the_component_that_is_compared(tmp_path: Path):
    more = learning(1) | {"rewards/a/pair_agreement": {0: 0.125, 1: 0.25}}
    more |= {"eval/rewards/a/mean": ramp(20), "eval/reward": ramp(20)}
    write_run(run_folder(tmp_path, "learned", 1), ramp(20), seed=1, more=more)
    assert analyse(tmp_path, metric=GOLD).online[0].observed == "gold"
    (arm,) = analyse(tmp_path, metric="eval/rewards/a/mean").online
    assert (arm.observed, arm.agreement_first.point, arm.agreement_last.point) == ("a", 0.125, 0.25)
    assert analyse(tmp_path, metric="eval/reward").online[0].observed == "a", "the first by name"


def test_every_observed_reward_has_a_panel_among_the_learning_curves(tmp_path: Path):
    more = {f"rewards/{name}/pair_agreement": agreement(0.5, 1.0) for name in ("gold", "length")}
    write_run(run_folder(tmp_path, "a", 1), ramp(20), seed=1, more=more)
    page = write_report(tmp_path).read_text()
    for place, name in enumerate(("gold", "length"), start=1):
        svg = (tmp_path / "report" / f"learning_agreement_{place}.svg").read_text()
        assert f"Agreement of the reward with the {name} reward" in svg
    assert page.count("<figure>") == 3 and 'id="online"' not in page
    assert "Agreement with an observed reward is a running mean" in page
    assert "pair_agreement," not in page[: page.index('<div class="pictures">')], "not among what was not logged"


def test_the_terminal_shows_the_learning_arms_in_100_columns(study: Path):
    stream = io.StringIO()
    print_report(study, Console(file=stream, width=100))
    text = stream.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 100
    (learned,) = [line for line in text.splitlines() if re.match(r" learned +36 ", line)]
    assert re.split(r"\s{2,}", learned.strip()) == [
        *("learned", "36", "0.625", "0.500 → 0.875", "1.50 → 4.50", "1.00 → 3.00")
    ]
    assert "3 unanswered" in text


def test_a_frozen_arm_is_a_level_and_a_learning_one_a_curve_over_labels():
    curves = {"learned": {1: Curve(np.array([0.0, 8]), np.array([1.0, 3])), 2: Curve(np.array([0.0, 8]), np.ones(2))}}
    styles = arm_styles(["learned", "frozen"], {}, {})
    figure = labels_figure(Panel("m", "Metric", "m"), curves, styles, {"frozen": (1.0, 4.0)})
    (axes,) = figure.axes
    lines = {str(drawn.get_label()): drawn for drawn in axes.get_lines()}
    assert lines["frozen"].get_ydata() == [2.5, 2.5]
    assert lines["learned"].get_xdata().tolist() == [0, 8] and lines["learned"].get_ydata().tolist() == [1, 2]
    assert lines["frozen"].get_color() == styles["frozen"].colour


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.0011, 0.0014, "0.0012"),
        (0.001, 0.1, "0.02"),
        (1e-4, 1e5, "10,000"),
        (2048.0, 2048.0, "2,000"),
        (0.0, 0.0, "0.00"),
    ],
)
def test_a_logarithmic_panel_labels_a_few_ticks_in_plain_numbers(low: float, high: float, shown: str):
    curves = {"a": {1: Curve(np.array([4.0, 8]), np.array([low, high]))}}
    figure = labels_figure(Panel("s", "Seconds", "s", logarithmic=True), curves, arm_styles(["a"], {}, {}), {})
    figure.draw_without_rendering()
    bottom, top = figure.axes[0].get_ylim()  # some releases of matplotlib place labels beyond the axis, too
    labels = figure.axes[0].get_yticklabels()
    texts = [label.get_text() for label in labels if bottom <= label.get_position()[1] <= top]
    assert shown in texts and len(texts) < 14 and not any("$" in text for text in texts)


def test_curves_over_labels_take_the_last_value_at_each_number_of_labels():
    steps = np.array([0.0, 10, 20, 30, 40])
    curves = {"a": {1: Curve(steps, np.array([1.0, 2, 3, 4, 5])), 2: Curve(steps, np.ones(5))}, "b": {}}
    labels = {"a": {1: Curve(np.array([0.0, 10, 20, 40, 50]), np.array([0.0, 0, 8, 8, 16]))}}
    result = against_labels(curves, labels)
    assert list(result) == ["a"] and list(result["a"]) == [1]
    assert result["a"][1].steps.tolist() == [0, 8] and result["a"][1].values.tolist() == [2, 5]


COUNTS = st.lists(st.integers(0, 3), min_size=1, max_size=12).map(np.cumsum)


@given(COUNTS, st.data())
def test_curves_over_labels_hold_one_measured_value_for_each_number_of_labels(counts: np.ndarray, data):
    n = len(counts)
    measured = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    curve = Curve(np.array(measured, dtype=float), np.array([10.0 * step for step in measured]))
    labels = Curve(np.arange(n, dtype=float), counts.astype(float))
    expected = {counts[step]: 10.0 * step for step in measured}
    result = against_labels({"a": {1: curve}}, {"a": {1: labels}})["a"][1]
    assert dict(zip(result.steps, result.values, strict=True)) == expected
