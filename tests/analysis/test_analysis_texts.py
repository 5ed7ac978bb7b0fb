"""Completions of runs as a table, in the report side by side, and as rewards of each prompt."""

import math
import re
import unicodedata
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from helpers.nasty import NASTY, WRITTEN
from kept_completions import rows_of, write_completions
from synthetic_runs import ramp, run_folder, write_run, write_study

from analysis import ReportError, load_completions, prompt_rewards, write_report
from analysis.texts import N_PROMPTS, SHOWN, shown

EVALUATIONS = (0, 10, 20, 50, 100)
NAMES = [f"prompt {i}" for i in range(7)]


def evaluations(arm: str, prompts=NAMES, steps=EVALUATIONS, lift=0.0, **settings):
    found = []
    for step in steps:
        texts = {prompt: f"{arm} at {step} to {prompt}" for prompt in prompts}
        rewards = [i + step / 100 + lift for i in range(len(prompts))]
        found.append(rows_of(step, texts, rewards, [each / 10 for each in rewards], **settings))
    return found


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two arms with two seeds each."""
    root = write_study(tmp_path / "study", {arm: {1: ramp(50), 2: ramp(60)} for arm in ("a", "b")}, {"b": "a"})
    for arm in ("a", "b"):
        for seed in (1, 2):
            write_completions(run_folder(root, arm, seed), evaluations(arm, lift=seed))
    return root


def section(page: str) -> str:
    (found,) = re.findall(r'<section id="texts">.*?</section>', page, re.DOTALL)
    return found


def test_the_table_has_arm_seed_run_and_every_row_in_order(study: Path):
    table = load_completions(study)
    assert list(table.columns) == [
        *("arm", "seed", "run", "split", "set", "step", "prompt_id", "row", "member", "prompt", "completion"),
        *("reward", "rewards/model", "rewards/gold", "adjusted", "advantage", "length", "truncated", "logprob"),
        *("ref_logprob", "kl", "ids"),
    ]
    assert len(table) == 4 * len(EVALUATIONS) * len(NAMES)
    row = table[(table["run"] == "arms/b/seed_2") & (table["step"] == 20) & (table["prompt"] == "prompt 3")]
    assert row["completion"].tolist() == ["b at 20 to prompt 3"] and row["reward"].tolist() == [5.2]
    assert row["rewards/gold"].tolist() == [pytest.approx(0.52)] and row["seed"].tolist() == [2]
    assert set(table["split"]) == {"held_out"} and set(table["set"]) == {""} and table["adjusted"].isna().all()


def test_training_and_held_out_sets_are_told_apart(tmp_path: Path):
    for name in ("train", "far"):  # a held-out set may have the name of the training table
        write_completions(write_run(tmp_path / "run", ramp(50), seed=3), evaluations("x"), name=name)
    write_completions(tmp_path / "run", evaluations("y"), split="train")
    table = load_completions(tmp_path)
    found = {(split, name): set(rows["completion"].str[0]) for (split, name), rows in table.groupby(["split", "set"])}
    assert found == {("train", ""): {"y"}, ("held_out", "train"): {"x"}, ("held_out", "far"): {"x"}}
    assert set(table["seed"]) == {3}
    assert set(load_completions(tmp_path, "train")["split"]) == {"train"}
    with pytest.raises(ReportError, match="split: got 'eval', expected 'train', 'held_out', or None"):
        load_completions(tmp_path, "eval")


def test_a_point_of_a_grid_gets_no_columns_from_the_name_of_its_folder(tmp_path: Path):
    write_completions(write_run(tmp_path / "arms/a@lr=0.1/seed_1", ramp(50), seed=1), evaluations("a"))
    assert "lr" not in load_completions(tmp_path) and "a@lr" not in load_completions(tmp_path)


def test_a_run_under_way_is_read_up_to_its_last_whole_step(tmp_path: Path):
    run = write_run(tmp_path / "run", ramp(50), seed=1)
    write_completions(run, evaluations("a"), closed=False)
    assert sorted(set(load_completions(tmp_path)["step"])) == list(EVALUATIONS)
    (stream,) = (run / "completions").iterdir()
    stream.write_bytes(stream.read_bytes()[:-40])
    assert sorted(set(load_completions(tmp_path)["step"])) == list(EVALUATIONS[:-1])


def test_runs_without_completions_are_named_and_none_at_all_is_an_error(study: Path, tmp_path: Path):
    write_run(run_folder(study, "b", 3), ramp(50), seed=3)
    with pytest.warns(UserWarning, match="^no completions of arms/b/seed_3$"):
        load_completions(study)
    write_run(tmp_path / "bare" / "run", ramp(50), seed=1)
    with pytest.raises(ReportError, match=r"bare: no run in it has completions; expected files in <run>/completions/"):
        load_completions(tmp_path / "bare")


def test_a_damaged_file_is_one_line_and_a_note_in_the_report(study: Path):
    file = run_folder(study, "a", 1) / "completions" / "held_out-000000.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ReportError, match=r"held_out-000000\.parquet: cannot be read as completions .*; rem") as caught:
        load_completions(study)
    assert "\n" not in str(caught.value)
    page = section(write_report(study).read_text(encoding="utf-8"))
    assert "cannot be read as completions" in page and "b at 100 to" in page and "a at 100 to" in page
    assert "seed 2:" in page, "the seed that both arms have"


def test_the_page_shows_the_first_prompts_by_id_at_the_first_middle_and_last_common_evaluation(study: Path):
    later = run_folder(study, "b", 1)
    write_completions(later, evaluations("b", steps=[150]))  # only one arm went on
    page = section(write_report(study).read_text(encoding="utf-8"))
    table = load_completions(study)
    first = table.drop_duplicates("prompt_id").sort_values("prompt_id")["prompt"].head(N_PROMPTS).tolist()
    texts = [unescape(each) for each in re.findall(r'<div class="sampled"[^>]*>(.*?)</div>', page, re.DOTALL)]
    expected = []
    for prompt in first:
        expected += [prompt, *(f"{arm} at {step} to {prompt}" for step in (0, 20, 100) for arm in ("a", "b"))]
    assert texts == expected
    assert f"Shown are {N_PROMPTS} of {len(NAMES)} prompts" in page and "seed 1:" in page
    assert 'dir="auto"' in page and "KL 0.0100" in page
    assert re.search(r"reward \d\.\d+, model \d\.\d+, gold 0\.\d+", page)


def test_a_study_without_completions_has_no_such_section_and_no_file(tmp_path: Path):
    study = write_study(tmp_path, {"a": {1: ramp(50)}}, {})
    assert 'id="texts"' not in write_report(study).read_text(encoding="utf-8")
    assert not (study / "report" / "prompts.csv").exists()


def test_whatever_was_written_is_text_in_the_page_and_survives_the_file(tmp_path: Path):
    study = write_study(tmp_path, {arm: {1: ramp(50)} for arm in ("a", "b")}, {"b": "a"})
    for arm in ("a", "b"):
        texts = dict(zip(WRITTEN.values(), reversed(WRITTEN.values()), strict=True))
        batches = [rows_of(step, texts, [1.0] * len(texts), [math.nan] * len(texts), None) for step in EVALUATIONS]
        write_completions(run_folder(study, arm, 1), batches)
    table = load_completions(study)
    assert set(table["completion"]) == set(table["prompt"]) == set(WRITTEN.values())
    assert table["kl"].isna().all() and table["rewards/gold"].isna().all()

    page = write_report(study).read_text(encoding="utf-8")
    assert "<script" not in section(page) and "<b>bold" not in page
    assert "{{" not in section(page).replace(NASTY["markdown"], "")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e\u2066-\u2069]", section(page))
    assert len(section(page)) < 150_000
    assert (study / "report" / "prompts.csv").stat().st_size < 100_000
    prompts = pd.read_csv(study / "report" / "prompts.csv", keep_default_na=False)["prompt"]
    assert len(prompts) == 2 * len(WRITTEN) and max(map(len, prompts)) < 8 * 120 + 40
    assert any(prompt.endswith("… (100000 characters)") for prompt in prompts)


@pytest.mark.parametrize("name", NASTY)
def test_each_odd_text_is_shown_whole_or_visibly_cut(name: str):
    text = WRITTEN[name]
    found = shown(text)
    assert found.length == len(text) and found.cut == max(0, len(text) - SHOWN)
    assert all(c.isprintable() or c in "\n\t" for c in found.text)
    assert len(found.text.encode()) <= 12 * SHOWN  # whatever is in it, so that the page is bounded
    # Every character is there in its place: itself, or the symbol of a control character.
    symbols = iter(re.findall(r"⟨U\+[0-9A-F]{4}⟩|.", found.text, re.DOTALL))
    for character in text[:SHOWN]:
        symbol = next(symbols)
        if symbol != character:
            assert unicodedata.category(character) in ("Cc", "Cf", "Zl") and symbol not in text
    assert next(symbols, None) is None


def test_the_reward_of_a_prompt_is_the_mean_over_seeds_at_the_last_evaluation(study: Path):
    write_completions(run_folder(study, "b", 1), evaluations("b", steps=[150], lift=5.0))  # seed 2 ended at 100
    found = prompt_rewards(load_completions(study)).set_index(["prompt", "arm"])
    assert len(found) == 2 * len(NAMES)
    a, b = (found.loc["prompt 3", arm] for arm in ("a", "b"))
    assert (a["step"], a["n"]) == (100, 2) and a["reward"] == pytest.approx((3 + 1 + 1 + 3 + 1 + 2) / 2)
    assert a["rewards/gold"] == pytest.approx(a["reward"] / 10)
    assert (b["step"], b["n"], b["reward"]) == (150, 1, pytest.approx(3 + 1.5 + 5))
    assert found["set"].eq("").all() and found.index.is_unique


def test_a_prompt_without_a_reward_counts_no_seed(tmp_path: Path):
    for seed, reward in ((1, math.nan), (2, 3.0)):
        run = write_run(tmp_path / "a" / f"seed_{seed}", ramp(50), seed=seed)
        write_completions(run, [rows_of(100, {"p": "x", "q": "y"}, [reward, math.nan], [reward, 1.0])])
    found = prompt_rewards(load_completions(tmp_path)).set_index("prompt")
    assert found.loc["p", ["reward", "n"]].tolist() == [3.0, 1]
    assert math.isnan(found.loc["q", "reward"]) and found.loc["q", "n"] == 0


def test_the_csv_beside_the_report_is_the_function_s_table_of_the_runs_that_count(study: Path):
    failed = write_run(run_folder(study, "a", 3), ramp(50), seed=3, state="failed")
    write_completions(failed, evaluations("a", lift=9.0))
    write_report(study)
    read = pd.read_csv(study / "report" / "prompts.csv", keep_default_na=False)
    table = load_completions(study)
    counted = prompt_rewards(table[table["run"] != "arms/a/seed_3"])
    pd.testing.assert_frame_equal(read, counted, check_dtype=False)
