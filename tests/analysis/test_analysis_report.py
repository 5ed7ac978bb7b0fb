import base64
import hashlib
import io
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from realistic_study import INJECTED, write_realistic_study
from rich.console import Console
from synthetic_runs import (
    GOLD,
    INCREASE,
    line,
    ramp,
    run_folder,
    write_events,
    write_run,
    write_status,
    write_study,
    write_study_yaml,
)

from analysis import ReportError, efficiency_table, load_runs, print_report, write_report
from analysis.diagnostics import config_differences, read_config
from analysis.study import analyse
from analysis.style import arm_styles

SECTIONS = [
    *("verdicts", "efficiency", "learning", "paired", "kl", "adjustment", "rewards"),
    *("equal-cost", "diagnoses", "runs", "step-0", "configs"),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_realistic_study(tmp_path_factory.mktemp("study") / "quickstart")


@pytest.fixture(scope="module")
def page(study: Path) -> str:
    return write_report(study).read_text(encoding="utf-8")


def test_the_report_has_its_sections_in_order_and_its_files_beside_it(study: Path, page: str):
    assert re.findall(r'<section id="([\w-]+)">', page) == [*SECTIONS, "all-settings", "methods"]
    files = {file.name for file in (study / "report").iterdir()}
    assert {
        "index.html",
        "efficiency.csv",
        "curves.csv",
        "settings.csv",
        "learning_metric.svg",
        "reward_against_kl.svg",
    } <= files
    assert {"paired_difference_1.svg", "paired_difference_2.svg"} <= files


def test_the_csv_is_the_table_with_empty_cells_for_what_is_unknown(study: Path, page: str):
    text = (study / "report" / "efficiency.csv").read_text()
    assert "nan" not in text.lower() and "inf" not in text.lower()
    read = pd.read_csv(study / "report" / "efficiency.csv", keep_default_na=True).fillna({"baseline": ""})
    pd.testing.assert_frame_equal(read, efficiency_table(load_runs(study)), check_dtype=False)
    assert ",,eval/rewards/gold/mean," in text.splitlines()[1], "an arm that stands alone has no baseline"


def test_the_same_runs_give_the_same_bytes(study: Path, page: str):
    before = {file.name: file.read_bytes() for file in (study / "report").iterdir()}
    write_report(study)
    assert {file.name: file.read_bytes() for file in (study / "report").iterdir()} == before


def test_text_from_runs_is_escaped(page: str):
    assert "&lt;script&gt;document.title = &#39;owned&#39;&lt;/script&gt; &amp; &lt;b&gt;bold&lt;/b&gt;" in page
    assert INJECTED not in page


def test_names_of_arms_are_text_in_the_page_and_in_the_pictures(tmp_path: Path):
    name = "<img src=x onerror=alert(1)> $x^2$ & co"
    arms = {"grpo": {1: ramp(50), 2: ramp(40)}, name: {1: ramp(60), 2: ramp(80)}}
    write_study(tmp_path, arms, {name: "grpo"})
    (tmp_path / "study.yaml").unlink()  # which could not hold such a name, but a folder of bare runs can
    page = write_report(tmp_path, baseline="grpo").read_text(encoding="utf-8")
    assert "<img" not in page
    for svg in (tmp_path / "report").glob("*.svg"):
        assert "<img" not in svg.read_text(encoding="utf-8")
    assert "&lt;img src=x onerror=alert(1)&gt; $x^2$ &amp; co" in (tmp_path / "report/learning_metric.svg").read_text()


def test_the_page_needs_nothing_from_outside(page: str):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert "default-src 'none'" in policy and "unsafe" not in policy.partition("style-src")[0]
    marked_up = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    references = re.findall(r'(?:src|href)="([^"]*)"', marked_up)
    assert all(reference.startswith(("#", "data:")) for reference in references)
    assert "url(http" not in page and "@import" not in marked_up


def test_the_policy_lets_the_scripts_of_the_page_run_and_no_other(page: str):
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert [kind for kind, _ in scripts] == [' type="application/json" id="chart-data"', "", "", "", ""]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in scripts[1:]]
    (allowed,) = re.findall(r"script-src ([^;]+);", page)
    assert allowed.split() == [f"'sha256-{each}'" for each in hashes]


def test_pictures_in_the_page_share_no_ids(page: str):
    page = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert targets and targets <= set(ids)


def test_an_arm_that_is_slower_is_called_slower_in_the_page_and_in_the_terminal(study: Path, page: str):
    assert '<p class="answer">grpovi-group is slower than grpo-group.</p>' in page
    assert "grpovi-group is slower than grpo-group." in terminal(study)


def terminal(study: Path, width: int = 100, **arguments) -> str:
    stream = io.StringIO()
    print_report(study, Console(file=stream, width=width), **arguments)
    return stream.getvalue()


def test_the_terminal_shows_table_verdicts_exclusions_and_path_in_100_columns(study: Path, page: str):
    text = terminal(study)
    assert max(len(line) for line in text.splitlines()) <= 100
    for expected in ("grpovi-none", "1 excluded", "2 of 2", "arms/grpovi-none/seed_3: failed at step 40 of 100"):
        assert expected in text
    assert "report: " in text and "index.html" in text
    paired = efficiency_table(load_runs(study)).set_index("arm").loc["grpovi-group", "paired_diff"]
    assert f"\N{MINUS SIGN}{abs(paired):.4f}" in text


def test_printing_the_report_writes_it_and_names_its_path_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    study = write_study(tmp_path / "study", {"a": {1: ramp(50)}, "b": {1: ramp(60)}}, {"b": "a"})
    print_report(study)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 100
    text = "".join("".join(line.split()) for line in lines)  # a long path begins a line
    assert text.endswith(f"report:{study}/report/index.html")
    assert (study / "report" / "index.html").is_file()


def test_a_narrow_terminal_cuts_no_number_off(study: Path):
    text = terminal(study, width=76)
    paired = efficiency_table(load_runs(study)).set_index("arm").loc["grpovi-group"]
    for end in ("paired_diff", "paired_low", "paired_high"):
        assert "…" not in text and f"\N{MINUS SIGN}{abs(paired[end]):.4f}" in text.split("is slower")[0]


def test_markup_in_an_error_is_text_in_the_terminal(tmp_path: Path):
    study = write_study(tmp_path, {"a": {1: ramp(50)}}, {})
    write_status(run_folder(study, "a", 2), seed=2, state="failed", error="[bold]not markup[/bold] [/]")
    assert "[bold]not markup[/bold] [/]" in terminal(study)


def test_the_rise_in_units_of_the_initial_spread_is_last_minus_first_over_the_first_std(tmp_path: Path):
    write_run(tmp_path / "grpo", line(0.25, 0.75), seed=1, more={"eval/rewards/gold/std": {0: 0.125, 100: 7.0}})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert cells(page, "rise-table")[0][1:] == ["1", "0.250", "0.750", "0.125", "+4.00"]


def cells(page: str, table: str) -> list[list[str]]:
    body = re.search(rf'id="{table}".*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert body is not None
    rows = re.findall(r"<tr>(.*?)</tr>", body.group(1), re.DOTALL)
    texts = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"<[^>]+>", "", text).strip() for text in row] for row in texts]


def test_the_last_held_out_pair_accuracy_is_shown(page: str):
    assert "<strong>74.3 %</strong> at step 50 of <code>prepare/reward_model</code>" in page


def test_an_unknown_pair_accuracy_says_why(tmp_path: Path):
    study = write_study(tmp_path, {"a": {1: ramp(50)}}, {}, pair_accuracy="prepare/reward_model")
    assert "is not known: there are no log files in that folder" in write_report(study).read_text()
    write_events(study / "prepare" / "reward_model", {"loss": {0: 1.0}})
    assert "is not known: the run did not log eval/pair_accuracy" in write_report(study).read_text()


def test_a_pair_accuracy_outside_the_study_is_refused_and_nothing_is_written(tmp_path: Path):
    study = write_study(tmp_path / "study", {"a": {1: ramp(50)}}, {}, pair_accuracy="../other")
    with pytest.raises(
        ReportError, match=r"pair_accuracy '\.\./other' is not a prepared run; expected one of prepare/reward_model"
    ):
        write_report(study)
    assert not (study / "report").exists()


def test_arms_that_start_from_different_completions_raise_the_alarm(tmp_path: Path):
    study = write_study(tmp_path, {"a": {1: ramp(50), 2: ramp(50)}, "b": {1: ramp(60), 2: ramp(60)}}, {"b": "a"})
    write_status(run_folder(study, "b", 2), seed=2, first_rollout="cd" * 32)
    page = write_report(study).read_text()
    assert "Seed 2: the arms did not start from the same completions" in page
    assert "Seed 1: the arms did not start" not in page
    rows = cells(page, "rollout-table")
    assert rows[0][1] == "yes, 2 recorded" and rows[1][1] == "no: they differ"
    assert "cdcdcdcdcdcd" in rows[1][2]


def test_arms_that_are_evaluated_on_different_rows_raise_the_alarm(tmp_path: Path):
    study = write_study(tmp_path, {"a": {1: ramp(50), 2: ramp(50)}, "b": {1: ramp(60), 2: ramp(60)}}, {"b": "a"})
    assert "held-out rows" not in write_report(study).read_text()
    for arm, digest in (("a", "12" * 32), ("b", "34" * 32)):
        write_status(run_folder(study, arm, 2), seed=2, held_out=digest)
    page = write_report(study).read_text()
    assert "Seed 2: the arms were evaluated on different held-out rows" in page
    assert "<code>12121212</code>" in page and "<code>34343434</code>" in page
    assert "Seed 1: the arms were evaluated" not in page


def test_a_rollout_that_was_not_recorded_is_not_called_equal(tmp_path: Path):
    study = write_study(tmp_path, {"a": {1: ramp(50)}, "b": {1: ramp(60)}}, {"b": "a"})
    for arm in ("a", "b"):
        write_status(run_folder(study, arm, 1), seed=1, first_rollout=None)
    assert cells(write_report(study).read_text(), "rollout-table")[0][1] == "not recorded"


def test_every_run_is_listed_with_its_state_and_reason(page: str):
    rows = {row[0]: row for row in cells(page, "runs-table")}
    assert len(rows) == 12
    assert rows["arms/grpovi-group/seed_1"][1:8] == ["grpovi-group", "1", "finished", "100", "100", "81.2", "cpu"]
    failed = rows["arms/grpovi-none/seed_3"]
    assert failed[3] == "failed" and failed[8] == "no: failed at step 40 of 100: RuntimeError: reward is NaN"
    assert {row[8] for run, row in rows.items() if run != "arms/grpovi-none/seed_3"} == {"yes"}


def test_a_planned_run_that_is_missing_is_listed(tmp_path: Path):
    study = write_study(tmp_path, {"a": {1: ramp(50)}}, {})
    write_study_yaml(study, ["a"], {}, [1, 2])
    rows = cells(write_report(study).read_text(), "runs-table")
    assert rows[1] == ["arms/a/seed_2", "a", "2", "missing"] + ["\N{EN DASH}"] * 4 + [
        "no: planned in study.yaml, but there is no such run"
    ]


def test_a_study_in_which_every_run_failed_still_has_a_report(tmp_path: Path):
    write_study_yaml(tmp_path, ["a", "b"], {"b": "a"}, [1])
    for arm in ("a", "b"):
        write_status(run_folder(tmp_path, arm, 1), seed=1, state="failed", error="no memory")
    page = write_report(tmp_path).read_text()
    assert "No verdict on b against a: no seed counts in both arms." in page
    assert page.count("no: failed at step 100 of 100: no memory") == 2
    assert "No run counts, so there is nothing to draw." in page
    assert "No verdict on b" in terminal(tmp_path)


def test_two_bare_runs_of_five_steps_are_compared(tmp_path: Path):
    write_run(tmp_path / "plain", {0: 0.0, 5: 1.0}, seed=1, step=5, max_steps=5)
    write_run(tmp_path / "raised", {0: 0.0, 5: 0.95}, seed=1, step=5, max_steps=5, adjustment=INCREASE)
    page = write_report(tmp_path).read_text()
    assert "raised against plain: one seed only, so nothing can be said about other seeds." in page
    (_, raised) = efficiency_table(load_runs(tmp_path)).to_dict("records")
    assert raised["speedup"] == pytest.approx(0.95) and math.isnan(raised["speedup_low"])


def test_metric_baseline_and_target_can_be_given(tmp_path: Path):
    for arm, height in (("a", 1.0), ("b", 0.5)):
        write_run(tmp_path / arm, ramp(50), seed=1, more={"reward": ramp(50, height=height)})
    page = write_report(tmp_path, metric="reward", baseline="b", target=0.25).read_text()
    assert "a against b: one seed only" in page and "<code>reward</code> (it was asked for)" in page
    table = pd.read_csv(tmp_path / "report" / "efficiency.csv").set_index("arm")
    assert table.loc["a", "target"] == 0.25 and table.loc["a", "speedup"] == pytest.approx(2.0)
    assert "a against b" in terminal(tmp_path, metric="reward", baseline="b", target=0.25)


def test_what_the_arms_were_configured_differently_in_is_shown_without_their_places(study: Path, page: str):
    differences = config_differences(run_folder(study, "grpovi-group", 1), run_folder(study, "grpo-group", 1))
    assert differences == [
        (
            "model.adjustment.class_path",
            "grpovi_lightning.adjustment.VarianceIncrease",
            "grpovi_lightning.adjustment.IdentityAdjustment",
        )
    ]
    assert "<code>model.adjustment.class_path</code>" in page and "trainer.precision" in page


def test_a_config_that_cannot_be_read_is_not_taken_for_an_equal_one(tmp_path: Path):
    for arm in ("a", "b"):
        (tmp_path / arm).mkdir()
        (tmp_path / arm / "config.yaml").write_text("model: {lr: 1}")
    assert config_differences(tmp_path / "a", tmp_path / "b") == []
    (tmp_path / "b" / "config.yaml").write_text("model: [")
    assert read_config(tmp_path / "b") == {}
    assert config_differences(tmp_path / "a", tmp_path / "b") is None


def test_adjustment_diagnostics_are_means_over_steps_and_seeds(tmp_path: Path):
    for seed, value in ((1, 0.2), (2, 0.4)):
        before = {"adjustment/variance_before": {0: value, 1: value + 0.2}, "adjustment/range_upper": {0: 2.0}}
        write_run(run_folder(tmp_path, "a", seed), ramp(50), seed=seed, more=before)
    page = write_report(tmp_path).read_text()
    section = page[page.index('id="adjustment"') : page.index('id="rewards"')]
    assert re.findall(r'<td class="n">(.*?)</td>', section) == ["0.400", "2.00"]


def test_arms_share_a_colour_with_their_adjustment_and_a_dash_with_their_baseline():
    arms = ["grpo-group", "grpovi-group", "grpo-none", "grpovi-none"]
    baselines = {"grpovi-group": "grpo-group", "grpovi-none": "grpo-none"}
    styles = arm_styles(arms, baselines, {arm: arm.split("-")[0] for arm in arms})
    assert styles["grpo-group"].colour == styles["grpo-none"].colour != styles["grpovi-group"].colour
    assert styles["grpo-group"].line == styles["grpovi-group"].line == "solid"
    assert styles["grpo-none"].line == styles["grpovi-none"].line == "dashed"
    many = [f"arm{k}" for k in range(6)]
    apart = arm_styles(many, dict.fromkeys(many[1:], "arm0"), dict.fromkeys(many, "VarianceIncrease"))
    assert len({(style.colour, style.line) for style in apart.values()}) == 6


@pytest.mark.parametrize("n", [2, 7, 12, 24])
def test_no_two_arms_are_drawn_alike(n: int):
    arms = [f"arm{i}" for i in range(n)]
    half = dict.fromkeys(arms[1 : n // 2], "arm0") | dict.fromkeys(arms[n // 2 + 1 :], f"arm{n // 2}")
    adjustments = {arm: "Identity" if i % 3 else f"Other{i}" for i, arm in enumerate(arms)}
    for baselines in ({}, dict.fromkeys(arms[1:], "arm0"), half):
        assert len(set(arm_styles(arms, baselines, adjustments).values())) == n


def test_a_missing_folder_is_one_clear_error(tmp_path: Path):
    with pytest.raises(ReportError, match="no such folder; expected a study"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ReportError, match="no such folder; expected a study"):
        print_report(tmp_path / "nowhere")


def test_the_metric_of_the_comparison_is_in_the_report_with_its_origin(page: str):
    assert f"<code>{GOLD}</code> (named in study.yaml); higher is better." in page


def test_the_first_screen_says_what_a_run_cost_and_leaves_out_what_a_seed_did_not_log(tmp_path: Path):
    arms = {"grpo": {1: ramp(50), 2: ramp(40)}, "grpovi": {1: ramp(60), 2: ramp(80)}}
    study = write_study(tmp_path, arms, {"grpovi": "grpo"})
    comparisons = {comparison.arm: comparison for comparison in analyse(study).comparisons}
    assert (comparisons["grpo"].run_tokens, comparisons["grpo"].run_seconds) == (10_000, 200)
    rows = re.search(r'<table id="cost">.*?</table>', write_report(study).read_text(), re.DOTALL)[0]
    assert re.findall(r'<td class="n">([^<]*)</td>', rows)[:4] == ["40.5", "81.0", "10,000", "200"]


def test_quantities_that_no_run_logged_are_named_instead_of_drawn(tmp_path: Path):
    page = write_report(write_study(tmp_path, {"a": {1: ramp(50)}}, {})).read_text()
    assert "Not logged, so not drawn: eval/reward, eval/kl, eval/completions/mean_length, eval/entropy." in page
    assert page.count("<figure>") == 1
