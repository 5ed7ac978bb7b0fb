import pytest
from datasets import Dataset, DatasetDict

from grpovi_lightning.data.tables import read_table
from grpovi_lightning.errors import UserError

ROWS = [{"prompt": "one", "answer": 1}, {"prompt": "two , 'three'", "answer": 2}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def written(folder, ending):
    path, table = folder / f"table{ending}", Dataset.from_list(ROWS)
    match ending:
        case ".jsonl" | ".json":
            table.to_json(path)
        case ".csv":
            table.to_csv(path)
        case ".parquet":
            table.to_parquet(path)
        case "":
            table.save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ""])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    assert read_table(written(tmp_path, ending), ["prompt", "answer"]).to_list() == ROWS


def test_blank_lines_of_a_jsonl_file_are_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n\n   \n{"prompt": "two"}\n')
    assert read_table(str(tmp_path / "a.jsonl"), [])["prompt"][:] == ["one", "two"]


def test_a_column_that_only_later_rows_have_is_kept(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two", "answer": 3}\n')
    assert read_table(str(tmp_path / "a.jsonl"), ["answer"])["answer"][:] == [None, 3]


def test_text_beyond_ascii_survives(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "grün 狐"}\n', encoding="utf-8")
    assert read_table(str(tmp_path / "a.jsonl"), [])["prompt"][:] == ["grün 狐"]


BAD = {
    "gone.jsonl": (None, "no such file; expected JSONL, CSV, Parquet or a saved `datasets` folder"),
    "text.txt": ("x", "got ending '.txt', expected .jsonl, .csv or .parquet"),
    "empty.jsonl": ("", "no rows; expected at least one"),
    "blank.jsonl": ("\n\n", "no rows; expected at least one"),
    "broken.jsonl": ('{"prompt": "a"}\n{"prompt": \n', "line 2: no valid JSON"),
    "list.json": ('["a"]', "line 1: got list, expected a JSON object"),
    "mixed.jsonl": ('{"prompt": 1}\n{"prompt": "x"}\n', "cannot be read: Could not convert 'x'"),
    "latin.jsonl": (b'{"prompt": "\xff"}\n', "cannot be read: 'utf-8' codec can't decode"),
    "other.jsonl": ('{"question": "a", "answer": 1}\n', "no column 'prompt', it has question, answer; set the column"),
    "quote.csv": ('prompt,a\n"x,1\n', "cannot be read: Error tokenizing data"),
    "empty.csv": ("", "cannot be read: No columns to parse"),
    "header.csv": ("prompt,a\n", "cannot be read"),
    "rubbish.parquet": ("rubbish", "cannot be read: Parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_table_is_one_line_that_names_it(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read_table(str(path), ["prompt"])
    assert str(path) in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: Directory .* is neither"):
        read_table(str(tmp_path), [])


def test_a_folder_of_several_splits_asks_for_one_of_them(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match="holds several splits; name one of its sub-folders"):
        read_table(str(tmp_path / "d"), [])
    assert len(read_table(str(tmp_path / "d" / "train"), [])) == 2
