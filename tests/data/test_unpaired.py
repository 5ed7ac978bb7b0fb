"""Rows of one completion with a label: demonstrations where it is true, pairs of those of the same prompt."""

import logging

import pytest
from helpers.chat import assistant, user, write_jsonl

from grpovi_lightning.conversations import Conversation
from grpovi_lightning.data import DemonstrationDataModule, PreferenceDataModule
from grpovi_lightning.errors import UserError

ROWS = [  # a has two of each and one false more, b is never labelled false, c comes again with other tools
    {"prompt": "a", "completion": "a1", "label": True, "kind": "odd"},
    {"prompt": "b", "completion": "b1", "label": True, "kind": "odd"},
    {"prompt": "a", "completion": "a2", "label": False, "kind": "odd"},
    {"prompt": "a", "completion": "a3", "label": False, "kind": "even"},
    {"prompt": "c", "completion": "c1", "label": False, "kind": "odd", "tools": [{"name": "river"}]},
    {"prompt": "a", "completion": "a4", "label": True, "kind": "odd"},
    {"prompt": "a", "completion": "a5", "label": False, "kind": "odd"},
    {"prompt": "c", "completion": "c2", "label": True, "kind": "odd"},
]


def conversational(row):
    return row | {"prompt": [user(row["prompt"])], "completion": [assistant(row["completion"])]}


def tables(kind, folder, rows, form="jsonl", **settings):
    file = folder / f"rows.{form}"
    if form == "parquet":
        from datasets import Dataset

        Dataset.from_list([{"tools": None} | row for row in rows]).to_parquet(
            file
        )  # it has the columns of its first row
    elif form == "csv":
        lines = [f"{row['prompt']},{row['completion']},{row['label']}" for row in rows]
        file.write_text("\n".join(["prompt,completion,label", *lines]))
    else:
        write_jsonl(file, rows)
    data = kind(str(file), **settings)
    data._read_tables()
    return data, data.tables["train"]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
def test_what_is_labelled_true_is_imitated(tmp_path, caplog, form):
    with caplog.at_level(logging.INFO):
        data, table = tables(DemonstrationDataModule, tmp_path, ROWS, form)
    batch = data.collate(list(table))
    assert batch == {"prompt": ["a", "b", "a", "c"], "completion": ["a1", "b1", "a4", "c2"]}
    assert list(table.ids) == [0, 1, 5, 7]
    assert "4 of 8 rows left out, whose label is false" in caplog.text


def test_a_label_that_is_no_truth_value_is_a_column_like_any_other(tmp_path):
    rows = [row | {"label": int(row["label"])} for row in ROWS]
    assert len(tables(DemonstrationDataModule, tmp_path, rows)[1]) == 8
    assert len(tables(DemonstrationDataModule, tmp_path, ROWS, label_column=None)[1]) == 8


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_kth_good_completion_of_a_prompt_is_paired_with_its_kth_other_one(tmp_path, caplog, form):
    with caplog.at_level(logging.INFO):
        data, table = tables(PreferenceDataModule, tmp_path, ROWS, form)
    pairs = {"prompt": ["a", "a"], "chosen": ["a1", "a4"], "rejected": ["a2", "a3"]}
    assert data.collate(list(table)) == pairs and list(table.ids) == [0, 5]
    assert "2 pairs of completions to the same prompt; 4 of 8 rows left out" in caplog.text


def test_messages_are_paired_too(tmp_path):
    data, table = tables(PreferenceDataModule, tmp_path, [conversational(row) for row in ROWS])
    batch = data.collate(list(table))
    assert batch["prompt"] == [Conversation([user("a")])] * 2
    assert (batch["chosen"], batch["rejected"]) == (
        [[assistant("a1")], [assistant("a4")]],
        [[assistant("a2")], [assistant("a3")]],
    )


def test_a_pair_has_the_other_columns_in_which_its_rows_agree(tmp_path):
    _, table = tables(PreferenceDataModule, tmp_path, ROWS)
    assert [row["kind"] for row in table] == ["odd", None]


def test_columns_of_other_names_are_said(tmp_path):
    rows = [{"q": row["prompt"], "text": row["completion"], "good": row["label"]} for row in ROWS]
    names = {"prompt_column": "q", "completion_column": "text", "label_column": "good"}
    data, table = tables(PreferenceDataModule, tmp_path, rows, **names)
    assert data.collate(list(table))["chosen"] == ["a1", "a4", "c2"]
    data, table = tables(DemonstrationDataModule, tmp_path, rows, **names)
    assert data.collate(list(table))["completion"] == ["a1", "b1", "a4", "c2"]


@pytest.mark.parametrize(
    ("kind", "rows", "told"),
    [
        (PreferenceDataModule, ROWS[:2], "none of its prompts has both a true and a false label"),
        (DemonstrationDataModule, ROWS[2:4], "none of its 2 rows has a true label"),
        (PreferenceDataModule, [*ROWS, ROWS[0] | {"label": None}], r"label in row 8 \(line 9\): got None, expected"),
        (DemonstrationDataModule, [*ROWS, ROWS[0] | {"label": 1}], r"label in row 8 \(line 9\): got 1, expected true"),
        (PreferenceDataModule, [*ROWS, ROWS[0] | {"completion": 5}], r"chosen in row 8 \(line 9\): got 5, expected"),
        (PreferenceDataModule, [{"prompt": "a", "completion": "b"}], "no column 'chosen'"),
    ],
)
def test_what_makes_no_pairs_or_demonstrations_is_one_line(tmp_path, kind, rows, told):
    with pytest.raises(UserError, match=told) as raised:
        tables(kind, tmp_path, rows)
    assert "\n" not in str(raised.value)
