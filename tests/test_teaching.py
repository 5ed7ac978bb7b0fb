"""`grpovi sample` and `grpovi teach`: completions that are kept, and what rewards could teach of them."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.chat import assistant, save_chat_policy, user, write_jsonl
from helpers.commands import refusal
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.teaching import teaching_table
from grpovi_lightning.cli import main
from grpovi_lightning.run_record.layout import PREFERENCES_FILE
from grpovi_lightning.scored_completions import COMPLETIONS_FILE
from grpovi_lightning.teaching import PROMPTS_FILE, measure

REWARDS = """
def letters(prompts, completions, **columns):
    return [float(len(c[0]["content"]) if isinstance(c, list) else len(c)) for c in completions]


def fox(prompts, completions, **columns):
    return [float("fox" in str(c)) for c in completions]


def nothing(prompts, completions, **columns):
    return [2.0] * len(completions)
"""
PROMPTS = ["write about the fox", "a sad cat", "the old house", "ten words", "a dog"]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The YAML of a run on five prompts of messages, in the folder in which the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # a command finds the rewards by itself
    save_chat_policy(tmp_path / "policy")
    (tmp_path / "teach_rewards.py").write_text(REWARDS)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": [user(text)]} for text in PROMPTS])
    parts = [
        {"class_path": "grpovi_lightning.rewards.RewardFunction", "init_args": {"function": f"teach_rewards.{name}"}}
        for name in ("letters", "fox", "nothing")
    ]
    run = {
        "policy": {
            "class_path": "grpovi_lightning.models.PretrainedCausalLM",
            "init_args": {"path": "policy"},
        },
        "data": {
            "class_path": "grpovi_lightning.data.PromptDataModule",
            "init_args": {"train": "prompts.jsonl"},
        },
        "reward": {"class_path": "grpovi_lightning.rewards.CompositeReward", "init_args": {"rewards": parts}},
        "completions": 6,
        "prompts_at_once": 2,
        "sampling": {"max_completion_length": 8},
    }
    (tmp_path / "teach.yaml").write_text(yaml.safe_dump(run))
    return tmp_path


def grpovi(command, *arguments):
    return main([command, "--config", "teach.yaml", *arguments])


def test_what_is_kept_of_a_completion_is_what_the_policy_gave(config):
    assert grpovi("sample", "--output", "out") == 0
    table = pd.read_parquet(config / "out" / COMPLETIONS_FILE)
    assert table["row"].tolist() == [row for row in range(5) for _ in range(6)]
    assert table["member"].tolist() == [*range(6)] * 5 and table["tokens"].between(1, 8).all()
    model, tokenizer = AutoModelForCausalLM.from_pretrained("policy"), AutoTokenizer.from_pretrained("policy")
    row = table[~table["truncated"]].iloc[0]
    head = tokenizer.apply_chat_template([user(PROMPTS[row["row"]])], add_generation_prompt=True, return_dict=False)
    ends = tokenizer.convert_tokens_to_ids(["<eos>", "<|end|>"])
    texts = [[*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], end] for end in ends]
    whole = []
    for tail in texts:
        logits = model(torch.tensor([[*head, *tail]])).logits[0, len(head) - 1 : -1].double().log_softmax(-1)
        whole.append(float(logits[torch.arange(len(tail)), tail].sum()))
    assert any(value == pytest.approx(row["logprob"], abs=1e-4) for value in whole)
    assert (table["reward/letters"] == table["completion"].str.len()).all()


def test_a_command_that_was_stopped_goes_on_with_the_same_result(config):
    assert grpovi("sample", "--output", "whole") == 0
    expected = pd.read_parquet(config / "whole" / COMPLETIONS_FILE)
    assert grpovi("sample", "--output", "stopped") == 0
    file = config / "stopped" / COMPLETIONS_FILE
    (config / "stopped" / "parts").mkdir()
    expected.iloc[12:24].to_parquet(config / "stopped" / "parts" / "00002.parquet", index=False)
    file.unlink()
    assert grpovi("sample", "--output", "stopped") == 0
    pd.testing.assert_frame_equal(pd.read_parquet(file), expected)
    assert not (config / "stopped" / "parts").exists()


def test_a_completion_does_not_depend_on_the_prompts_beside_it(config):
    assert grpovi("sample", "--output", "two") == 0
    assert grpovi("sample", "--output", "five", "--prompts_at_once", "5") == 0
    columns = ["row", "member", "completion", "tokens"]
    two, five = (pd.read_parquet(config / name / COMPLETIONS_FILE)[columns] for name in ("two", "five"))
    pd.testing.assert_frame_equal(two, five)


def test_pairs_of_completions_become_preferences_with_the_better_one_first(config):
    assert grpovi("sample", "--output", "out", "--preferences", "letters") == 0
    table = pd.read_parquet(config / "out" / COMPLETIONS_FILE)
    expected = []
    for row, group in table.groupby("row"):
        texts = group["completion"].tolist()
        for a, b in zip(texts[::2], texts[1::2], strict=True):
            if len(a) != len(b):
                better, worse = (a, b) if len(a) > len(b) else (b, a)
                cut = dict(zip(group["completion"], group["truncated"], strict=True))
                expected.append(
                    {"prompt": [user(PROMPTS[row])], "chosen": [assistant(better)], "rejected": [assistant(worse)]}
                    | {"chosen_truncated": cut[better], "rejected_truncated": cut[worse]}
                )
    assert expected and written_pairs("out") == expected


def written_pairs(folder):
    return [json.loads(line) for line in (Path(folder) / PREFERENCES_FILE).read_text().splitlines()]


def test_pairs_with_a_completion_that_was_cut_off_are_counted_and_can_be_left_out(config, capsys):
    asked = ("--preferences", "letters", "--sampling.max_completion_length", "20")
    assert grpovi("sample", "--output", "all", *asked) == 0
    pairs = written_pairs("all")
    ended = [pair for pair in pairs if not (pair["chosen_truncated"] or pair["rejected_truncated"])]
    assert 0 < len(ended) < len(pairs)
    counted = f"{len(pairs)} pairs; among them {len(pairs) - len(ended)} in which a completion was cut off"
    assert counted in capsys.readouterr().out
    assert grpovi("sample", "--output", "ended", *asked, "--ended_only", "true") == 0
    assert written_pairs("ended") == ended
    counted = f"{len(ended)} pairs; left out {len(pairs) - len(ended)} in which"
    assert counted in capsys.readouterr().out


def test_what_the_template_reads_besides_messages_goes_into_preferences_too(config):
    more = {"tools": [{"name": "river"}], "chat_template_kwargs": {"quick": True}}
    write_jsonl(config / "prompts.jsonl", [{"prompt": [user(text)], **more} for text in PROMPTS])
    assert grpovi("sample", "--output", "out", "--preferences", "letters", "--data.init_args.columns", "[]") == 0
    rows = written_pairs("out")
    assert rows and all({name: row[name] for name in more} == more for row in rows)


def test_prompts_of_too_many_tokens_are_left_out_as_in_training(config, capsys):
    assert grpovi("sample", "--output", "out", "--data.init_args.preparation.max_tokens", "6") == 0
    assert "3 of 5 rows left out" in capsys.readouterr().err
    table = pd.read_parquet(config / "out" / COMPLETIONS_FILE)
    assert sorted(set(table["row"])) == [3, 4]  # <s> <|user|> ten words <|end|> <|assistant|>


def test_teach_writes_table_and_picture(config, capsys):
    assert grpovi("teach", "--output", "out", "--gold", "letters") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("letters", "fox", "nothing"))
    table = pd.read_csv(config / "out" / "teach.csv", index_col="reward")
    assert table.loc["letters", "accuracy"] == 1.0 and table.loc["nothing", "constant"] == 1.0
    assert table.loc["nothing", "accuracy"] == 0.5 and table.loc["nothing", "variance"] == 0.0
    assert (config / "out" / "teach.png").stat().st_size > 5000
    assert len(pd.read_parquet(config / "out" / PROMPTS_FILE)) == 15


def test_the_measure_is_a_loop_over_prompts():
    rng = np.random.default_rng(3)
    rewards, gold = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    rewards[1] = 0.5
    logs = rng.normal(size=(4, 5)) * 3
    table = pd.DataFrame(
        {"row": np.repeat([7, 3, 9, 1], 5), "member": [*range(5)] * 4, "logprob": logs.ravel()}
        | {"reward/a": rewards.ravel(), "reward/gold": gold.ravel()}
    )
    found = measure(table.sample(frac=1.0, random_state=1), "gold").query("reward == 'a'").set_index("row")
    scale = rewards.std(ddof=1)
    for i, row in enumerate([7, 3, 9, 1]):
        group, line = rewards[i] / scale, found.loc[row]
        assert line["variance"] == pytest.approx(group.var(ddof=1)) and line["constant"] == (i == 1)
        pairs = [(a, b) for a, b in itertools.permutations(range(5), 2) if gold[i, a] > gold[i, b]]
        wins = [1.0 if group[a] > group[b] else 0.5 if group[a] == group[b] else 0.0 for a, b in pairs]
        assert line["accuracy"] == pytest.approx(np.mean(wins))
        weights = np.exp(logs[i] - logs[i].max())
        low, high = (rewards / scale).min(), (rewards / scale).max()
        adjusted = adjusted_by_scan(group, weights / weights.sum(), low, high)
        assert line["adjusted_variance"] == pytest.approx(np.var(adjusted, ddof=1), abs=1e-9)


def adjusted_by_scan(rewards, weights, low, high):
    from grpovi_lightning.adjustment.reference import enumeration_search

    if np.ptp(rewards) == 0:
        return rewards
    return enumeration_search(rewards, weights, low, high)[0]


def test_the_table_orders_rewards_by_what_they_teach():
    rows = [
        {"row": row, "reward": name, "variance": v * (1 + row), "adjusted_variance": 8 * v}
        | {"constant": False, "accuracy": 0.5}
        for name, v in (("flat", 1 / 8), ("steep", 1.0))
        for row in range(3)
    ]
    table = teaching_table(pd.DataFrame(rows))
    assert list(table.index) == ["steep", "flat"] and table["time"].tolist() == pytest.approx([1.0, 2.0])
    assert table["variance"].tolist() == pytest.approx([2.0, 0.25]) and table["gain"].tolist() == pytest.approx(
        [4.0, 4.0]
    )
    assert table["time_adjusted"].tolist() == pytest.approx([4 ** (-1 / 3), 2 * 4 ** (-1 / 3)])
    assert ((table["variance_low"] <= table["variance"]) & (table["variance"] <= table["variance_high"])).all()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--gold", "silver"], "gold: got 'silver', expected one of letters, fox, nothing"),
        (["--preferences", "silver"], "preferences: got 'silver', expected one of letters"),
        (["--ended_only", "true"], "ended_only has no effect without preferences"),
        (["--completions", "0"], "completions: got 0, expected at least 1"),
        (["--completions", "1"], "completions: got 1, expected at least 2"),
        (["--n_prompts", "9"], "n_prompts: got 9, expected at most the 5"),
        (["--table", "test"], "table: got 'test', expected one of train"),
        (["--policy.init_args.path", "nowhere"], "policy nowhere: no such folder"),
    ],
)
def test_a_wrong_request_is_one_line_before_anything_is_sampled(config, capsys, arguments, told):
    line = refusal(capsys, "teach", "--config", "teach.yaml", "--output", "out", *arguments)
    assert told in line and not (config / "out").exists()


def test_completions_of_other_settings_are_not_mixed_in(config, capsys):
    assert grpovi("sample", "--output", "out") == 0
    line = refusal(capsys, "sample", "--config", "teach.yaml", "--output", "out", "--seed", "2")
    assert "holds what other settings made" in line
