"""Margins of training pairs, and named subsets of held-out ones."""

import json

import pytest

from grpovi_lightning.data import PreferenceDataModule
from grpovi_lightning.errors import UserError

ROW = {"prompt": "write", "chosen": "a fox", "rejected": "the"}


def tables(folder, train, validation):
    for name, rows in (("train", train), ("validation", validation)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(ROW | row) + "\n" for row in rows))
    return [str(folder / f"{name}.jsonl") for name in ("train", "validation")]


def loaded(folder, train, validation, **settings):
    data = PreferenceDataModule(*tables(folder, train, validation), **settings)
    data.setup("fit")
    return data


def test_margins_and_subsets_stand_in_the_batches_of_their_tables(tmp_path):
    train, validation = [{"score": 1}, {"score": 0.5}], [{"kind": "easy"}, {"kind": "hard"}]
    data = loaded(tmp_path, train, validation, margin_column="score", subset_column="kind")
    first, second = (data.collate([table[0], table[1]]) for table in data.tables.values())
    assert first["margin"] == [1.0, 0.5] and "subset" not in first
    assert second["subset"] == ["easy", "hard"] and "margin" not in second


def test_without_the_settings_the_columns_are_left_where_they_are(tmp_path):
    data = loaded(tmp_path, [{"margin": "a lot"}], [{"subset": 3}])
    assert all(set(data.collate([table[0]])) == {"prompt", "chosen", "rejected"} for table in data.tables.values())


def test_a_margin_in_csv_is_read_as_a_number(tmp_path):
    (tmp_path / "train.csv").write_text("prompt,chosen,rejected,margin\nwrite,a fox,the,0.25\n")
    data = PreferenceDataModule(str(tmp_path / "train.csv"), margin_column="margin")
    data.setup("fit")
    assert data.collate([data.tables["train"][0]])["margin"] == [0.25]


@pytest.mark.parametrize("value", ["much", None, float("nan"), float("inf"), [1.0]])
def test_a_margin_that_is_no_finite_number_is_refused_by_its_row(tmp_path, value):
    with pytest.raises(UserError, match=r"margin in row 1 \(line 2\): got .*, expected a finite number"):
        loaded(tmp_path, [{"margin": 1.0}, {"margin": value}], [{}], margin_column="margin")


@pytest.mark.parametrize("value", ["", 3, None])
def test_a_subset_without_a_name_is_refused_by_its_row(tmp_path, value):
    with pytest.raises(UserError, match=r"subset in row 0 \(line 1\)"):
        loaded(tmp_path, [{}], [{"subset": value}], subset_column="subset")


@pytest.mark.parametrize(("setting", "table"), [("margin_column", "train"), ("subset_column", "validation")])
def test_a_column_that_is_not_there_is_refused(tmp_path, setting, table):
    with pytest.raises(UserError, match=rf"{table}\.jsonl: no column 'what', it has prompt, chosen, rejected"):
        loaded(tmp_path, [{}], [{}], **{setting: "what"})
