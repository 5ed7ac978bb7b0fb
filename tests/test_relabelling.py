"""`grpovi relabel`: preferences that a reward decides anew."""

import json
import sys

import pandas as pd
import pytest
import torch
import yaml
from helpers.chat import assistant, save_chat_reward_model, system, user, write_jsonl
from helpers.commands import refusal
from helpers.tiny_checkpoints import save_reward_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from grpovi_lightning.cli import main
from grpovi_lightning.data import PreferenceDataModule
from grpovi_lightning.relabelling import SCORES_FILE
from grpovi_lightning.run_record.layout import PREFERENCES_FILE

REWARDS = """
def letters(prompts, completions, level, **columns):
    texts = [c[0]["content"] if isinstance(c, list) else c for c in completions]
    return [None if "sad" in text else float(len(text) * sign) for text, sign in zip(texts, level)]


def shortness(completions, **columns):
    return [-float(len(text)) for text in completions]


def tokens(completions, completion_ids):
    return [float(len(ids)) for ids in completion_ids]
"""
TEXTS = [
    {"prompt": "the fox", "chosen": " sings", "rejected": " sings to it", "level": 1},
    {"prompt": "a dog", "chosen": " sees the river", "rejected": " runs", "level": 1},
    {"prompt": "a cat", "chosen": " sees", "rejected": " sees a boat", "level": -1},
    {"prompt": "ten words", "chosen": " five", "rejected": " four", "level": 1},
    {"prompt": "a boat", "chosen": " a sad one", "rejected": " red", "level": 1},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder in which the commands run, with the functions that are rewards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # a command finds the rewards by itself
    monkeypatch.delitem(sys.modules, "relabel_rewards", raising=False)
    (tmp_path / "relabel_rewards.py").write_text(REWARDS)
    return tmp_path


def function(name):
    path = "grpovi_lightning.rewards.RewardFunction"
    return {"class_path": path, "init_args": {"function": f"relabel_rewards.{name}"}}


def write(folder, rows, reward, **settings):
    data = {"train": write_jsonl(folder / "pairs.jsonl", rows)} | settings
    described = {"class_path": "grpovi_lightning.data.PreferenceDataModule", "init_args": data}
    (folder / "relabel.yaml").write_text(yaml.safe_dump({"data": described, "reward": reward, "rows_at_once": 2}))


def relabel(*arguments):
    return main(["relabel", "--config", "relabel.yaml", "--output", "out", *arguments])


def written(folder):
    lines = (folder / "out" / PREFERENCES_FILE).read_text().splitlines()
    return [json.loads(line) for line in lines], pd.read_parquet(folder / "out" / SCORES_FILE)


def test_the_answer_with_the_higher_reward_is_the_chosen_one_and_what_has_none_is_counted(folder, capsys):
    write(folder, TEXTS, function("letters"))
    assert relabel() == 0
    assert "5 rows, 1 swapped; left out: 1 ties, 1 unscored" in capsys.readouterr().out
    pairs, scores = written(folder)
    assert pairs == [
        {"prompt": "the fox", "chosen": " sings to it", "rejected": " sings"},
        {"prompt": "a dog", "chosen": " sees the river", "rejected": " runs"},
        {"prompt": "a cat", "chosen": " sees", "rejected": " sees a boat"},
    ]
    assert scores["row"].tolist() == [0, 1, 2, 3, 4] and scores["swapped"].tolist() == [True, *[False] * 4]
    assert scores["other"].tolist() == [12, 5, -12, 5, 4]
    assert scores["preferred"].tolist()[:4] == [6, 15, -5, 5] and pd.isna(scores["preferred"][4])


def logit(checkpoint, conversation):
    """The score of a checkpoint, from its tokenizer's own template, by `transformers` alone."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    ids = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        return float(model(ids).logits[0, 0])


def reward_model(path):
    return {"class_path": "grpovi_lightning.rewards.RewardModel", "init_args": {"path": str(path)}}


CONVERSATIONS = [
    {"prompt": [user("the old house")], "chosen": [assistant("a happy fox")], "rejected": [assistant("a sad dog")]},
    {"prompt": [user("ten words")], "chosen": [assistant("five")], "rejected": [assistant("a sad cat sees the river")]},
    {
        "prompt": [user("the fox")],
        "chosen": [assistant("sings"), user("to it"), assistant("a red boat")],
        "rejected": [assistant("runs")],
    },
]


def test_a_reward_model_reads_conversations_through_its_own_template_to_their_last_turn(folder):
    checkpoint = save_chat_reward_model(folder / "gold")
    write(folder, CONVERSATIONS, reward_model(checkpoint), conversations={"system_prompt": "the words"})
    assert relabel() == 0
    pairs, scores = written(folder)
    for row, pair, (_, score) in zip(CONVERSATIONS, pairs, scores.iterrows(), strict=True):
        asked = [system("the words"), *row["prompt"]]
        expected = [logit(checkpoint, [*asked, *row[side]]) for side in ("chosen", "rejected")]
        assert [score["preferred"], score["other"]] == pytest.approx(expected, abs=1e-5)
        better, worse = ("chosen", "rejected") if expected[0] > expected[1] else ("rejected", "chosen")
        assert pair == {"prompt": row["prompt"], "chosen": row[better], "rejected": row[worse]}
    assert 0 < scores["swapped"].sum() < 3


def test_a_reward_model_reads_text_as_that_of_the_tables_that_it_is_trained_on(folder, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(folder / "tokenizer")
    checkpoint = save_reward_model(folder / "gold", folder / "tokenizer")
    write(folder, TEXTS[:2], reward_model(checkpoint))
    assert relabel() == 0
    _, scores = written(folder)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    for row, value in zip(TEXTS[:2], scores["preferred"], strict=True):
        ids = tokenizer(row["prompt"] + row["chosen"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            expected = model(torch.tensor([[*ids, tokenizer.eos_token_id]])).logits[0, 0]
        assert value == pytest.approx(float(expected), abs=1e-5)


def test_rows_keep_their_format_with_what_the_template_reads_and_are_read_again(folder):
    opening = [user("the old house")]
    more = {"tools": [{"name": "river"}], "chat_template_kwargs": {"quick": True}, "kind": "odd", "level": 1}
    row = {"better": [*opening, assistant("a fox")], "worse": [*opening, assistant("a happy fox")], **more}
    settings = {"chosen_column": "better", "rejected_column": "worse", "subset_column": "kind"}
    write(folder, [row], function("letters"), **settings)
    assert relabel() == 0
    pairs, _ = written(folder)
    kept = {name: more[name] for name in ("tools", "chat_template_kwargs", "kind")}
    assert pairs == [{"better": row["worse"], "worse": row["better"], **kept}]
    again = PreferenceDataModule(str(folder / "out" / PREFERENCES_FILE), **settings)
    again.setup("fit")
    batch = again.collate([again.tables["train"][0]])
    assert batch["chosen"] == [[assistant("a happy fox")]] and batch["prompt"][0].tools == more["tools"]


def test_an_answer_that_calls_a_tool_has_no_score(folder, capsys):
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "river"}}]}
    asked = {"prompt": [user("the old house")], "level": 1}
    rows = [
        asked | {"chosen": [call], "rejected": [assistant("a fox")]},
        asked | {"chosen": [assistant("a fox")], "rejected": [assistant("a happy fox")]},
    ]
    write(folder, rows, function("letters"))
    assert relabel() == 0
    assert "2 rows, 1 swapped; left out: 0 ties, 1 unscored" in capsys.readouterr().out


def test_a_command_that_was_stopped_goes_on_with_what_is_there(folder):
    write(folder, TEXTS, function("letters"))
    assert relabel() == 0
    pairs, scores = written(folder)
    file = folder / "out" / SCORES_FILE
    (folder / "out" / "parts").mkdir()
    marked = scores.iloc[2:4].assign(preferred=[-1.0, 9.0])
    marked.to_parquet(folder / "out" / "parts" / "00002.parquet", index=False)
    file.unlink()
    assert relabel() == 0
    again, found = written(folder)
    assert found["preferred"].tolist()[:4] == [6, 15, -1, 9] and len(again) == len(pairs) + 1
    assert not (folder / "out" / "parts").exists()


def test_the_validation_table_is_relabelled_by_the_component_that_is_named(folder):
    parts = [function("letters"), function("shortness")]
    both = {"class_path": "grpovi_lightning.rewards.CompositeReward", "init_args": {"rewards": parts}}
    write(folder, TEXTS, both, validation=write_jsonl(folder / "held_out.jsonl", TEXTS[:1]))
    assert relabel("--table", "validation", "--by", "shortness") == 0
    pairs, scores = written(folder)
    assert pairs == [{name: TEXTS[0][name] for name in ("prompt", "chosen", "rejected")}]
    assert scores[["preferred", "other"]].values.tolist() == [[-6, -12]]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--by", "silver"], "by: got 'silver', expected one of the reward's components letters"),
        (["--rows_at_once", "0"], "rows_at_once: got 0, expected at least 1"),
        (["--table", "test"], "table: got 'test', expected one of train"),
        (["--data.init_args.preparation.max_tokens", "6"], "preparation.max_tokens: got 6, which counts the tokens of"),
        (["--reward.init_args.function", "relabel_rewards.nothing"], "module relabel_rewards has no 'nothing'"),
        (["--data.init_args.prompt_colum", "a"], "did you mean 'prompt_column'?"),
    ],
)
def test_a_wrong_request_is_one_line_before_anything_is_written(folder, capsys, arguments, told):
    write(folder, TEXTS, function("letters"))
    line = refusal(capsys, "relabel", "--config", "relabel.yaml", "--output", "out", *arguments)
    assert told in line and not (folder / "out").exists()


def test_a_column_that_the_reward_needs_is_missed_before_anything_is_scored(folder, capsys):
    write(folder, [{k: v for k, v in row.items() if k != "level"} for row in TEXTS], function("letters"))
    line = refusal(capsys, "relabel", "--config", "relabel.yaml", "--output", "out")
    assert "needs the argument 'level'" in line and not (folder / "out").exists()


def test_a_function_that_reads_the_tokens_of_a_policy_fails_in_one_line(folder, capsys):
    write(folder, [{k: v for k, v in row.items() if k != "level"} for row in TEXTS], function("tokens"))
    assert relabel() == 1
    assert "reward function tokens raised TypeError: 'NoneType' object is not iterable" in capsys.readouterr().err


def test_a_reward_that_tells_no_answers_apart_is_refused(folder, capsys):
    write(folder, TEXTS[3:], function("letters"))
    line = refusal(capsys, "relabel", "--config", "relabel.yaml", "--output", "out")
    assert "got 1 ties and 1 unscored of 2 rows" in line and not (folder / "out" / PREFERENCES_FILE).exists()


def test_a_row_that_is_too_long_for_the_model_is_named_before_anything_is_scored(folder, capsys):
    checkpoint = save_chat_reward_model(folder / "gold")
    settings = json.loads((checkpoint / "config.json").read_text()) | {"max_position_embeddings": 11}
    (checkpoint / "config.json").write_text(json.dumps(settings))
    write(folder, CONVERSATIONS[:2], reward_model(checkpoint))
    line = refusal(capsys, "relabel", "--config", "relabel.yaml", "--output", "out")
    assert "train table, row 1: got" in line and not (folder / "out" / SCORES_FILE).exists()


def test_scores_of_other_settings_are_not_mixed_in(folder, capsys):
    write(folder, TEXTS, function("letters"))
    assert relabel() == 0
    line = refusal(capsys, "relabel", "--config", "relabel.yaml", "--output", "out", "--rows_at_once", "3")
    assert "holds what other settings made" in line
