import json
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from grpovi_lightning.data.reading import read_table
from grpovi_lightning.errors import UserError

ROWS = [{"prompt": "one", "answer": 1}, {"prompt": "two , 'three'", "answer": 2}]


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """Reading writes nothing where `datasets` keeps copies of files."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    assert not (tmp_path / "cache").exists()


def rows_of(path, **settings):
    """The rows as they are handed out, without their numbers."""
    table = read_table(str(path), [], **settings)
    rows = [table[i] for i in range(len(table))]
    assert [row.pop("_row") for row in rows] == list(range(len(rows)))
    return rows


def exactly(rows):
    """Tells 1 from 1.0 and True, which are equal."""
    return repr(rows)


def written(folder, ending, rows=ROWS):
    path, table = folder / f"table{ending}", Dataset.from_list(rows)
    match ending:
        case ".jsonl" | ".json":
            table.to_json(path)
        case ".csv":
            table.to_csv(path)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case "":
            table.save_to_disk(path)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ""])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    assert exactly(rows_of(written(tmp_path, ending), csv_types={"answer": "int"})) == exactly(ROWS)


def test_blank_lines_of_a_jsonl_file_are_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n\n   \n{"prompt": "two"}\n')
    assert read_table(str(tmp_path / "a.jsonl"), []).column("prompt") == ["one", "two"]


def test_a_column_that_only_later_rows_have_is_kept(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two", "answer": 3}\n')
    assert read_table(str(tmp_path / "a.jsonl"), ["answer"]).column("answer") == [None, 3]


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize(("ending", "text"), [("jsonl", '{"prompt": "grün 狐"}\n'), ("csv", "prompt\ngrün 狐\n")])
def test_text_beyond_ascii_survives_and_a_byte_order_mark_is_no_part_of_it(tmp_path, ending, text, mark):
    (tmp_path / f"a.{ending}").write_text(mark + text, encoding="utf-8")
    assert rows_of(tmp_path / f"a.{ending}") == [{"prompt": "grün 狐"}]


# The values are those of the file.

CSV_TEXTS = ["NA", "None", "null", "NaN", "007", "True", "1e3", "2024-01-01", "", " x ", "two\nlines", 'say "no", then']


def test_every_cell_of_a_csv_file_is_the_text_that_stands_there(tmp_path):
    rows = [{"prompt": f"p{i}", "answer": text} for i, text in enumerate(CSV_TEXTS)]
    assert rows_of(written(tmp_path, ".csv", rows)) == rows


def test_columns_of_a_csv_file_have_the_types_that_are_asked_for(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,level,share,easy,answer\na,3,0.5,True,007\nb,-2,1e-3,false,NA\nc,,,,\n")
    found = rows_of(tmp_path / "a.csv", csv_types={"level": "int", "share": "float", "easy": "bool"})
    assert exactly(found) == exactly(
        [
            {"prompt": "a", "level": 3, "share": 0.5, "easy": True, "answer": "007"},
            {"prompt": "b", "level": -2, "share": 0.001, "easy": False, "answer": "NA"},
            {"prompt": "c", "level": None, "share": None, "easy": None, "answer": ""},
        ]
    )


@pytest.mark.parametrize(
    ("kind", "text"), [("int", "1.5"), ("int", "x"), ("float", "1,5"), ("bool", "yes"), ("bool", "1")]
)
def test_a_cell_that_is_not_of_its_type_is_named_with_its_line(tmp_path, kind, text):
    (tmp_path / "a.csv").write_text(f'prompt,level\n"two\nlines",\n\nb,"{text}"\n')
    with pytest.raises(UserError) as error:
        read_table(str(tmp_path / "a.csv"), [], {"level": kind})
    assert f"a.csv: level in row 1 (line 5): got {text!r}, expected {kind}, as csv_types says" in str(error.value)


def test_a_typed_column_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no column 'level', it has prompt, answer"):
        read_table(str(written(tmp_path, ".csv")), [], {"level": "int"})


JSON_VALUES = {
    "different keys": ['{"min": 3}', '{"word": "cat"}', "{}", "null"],
    "large": [str(2**63), str(-(2**200)), "1e308"],
    "int and float": ["1", "1.0", "2.5"],
    "mixed": ["1", '"x"', "true", '[1, "x", null]', '{"a": [{"b": 1}, {"c": 2.0}]}'],
    "dates": ['"2024-01-01"', '"2024-01-01T00:00:00"', '"007"'],
    "empty": ["[]", "[1]", "[[]]", '""'],
}


@pytest.mark.parametrize("name", JSON_VALUES)
def test_values_of_a_jsonl_file_are_those_of_the_json(tmp_path, name):
    texts = JSON_VALUES[name]
    lines = "".join(f'{{"prompt": "a", "answer": {text}}}\n' for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    found = [row["answer"] for row in rows_of(tmp_path / "a.jsonl")]
    assert exactly(found) == exactly([json.loads(text) for text in texts])


def test_a_missing_key_and_a_null_are_both_none(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a"}\n{"prompt": "b", "answer": null}\n{"answer": 1, "prompt": "c"}\n'
    )
    assert rows_of(tmp_path / "a.jsonl") == [
        {"prompt": "a", "answer": None},
        {"prompt": "b", "answer": None},
        {"prompt": "c", "answer": 1},
    ]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", ""])
def test_a_table_goes_to_another_process(tmp_path, ending):
    table = read_table(str(written(tmp_path, ending)), [])
    again = pickle.loads(pickle.dumps(table))
    assert [again[i] for i in range(len(again))] == [table[i] for i in range(len(table))]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_another_file_under_the_same_name_size_and_time_gives_its_own_rows(tmp_path, ending):
    path = written(tmp_path, ending, [{"prompt": "aaa"}])
    before = path.stat()
    assert rows_of(path) == [{"prompt": "aaa"}]
    written(tmp_path, ending, [{"prompt": "bbb"}])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert rows_of(path) == [{"prompt": "bbb"}]


@pytest.mark.parametrize("format", [{"type": "torch", "columns": ["answer"]}, {"type": "numpy"}, {"type": "pandas"}])
def test_a_saved_folder_is_read_whatever_format_it_was_saved_in(tmp_path, format):
    Dataset.from_list(ROWS).with_format(**format).save_to_disk(tmp_path / "d")
    assert exactly(rows_of(tmp_path / "d")) == exactly(ROWS)


BAD = {
    "gone.jsonl": (None, "no such file; expected JSON, CSV or Parquet"),
    "text.txt": ("x", "got ending '.txt', expected .jsonl, .json or .csv, also with .gz or .zst, or .parquet"),
    "empty.jsonl": ("", "no rows; expected at least one"),
    "blank.jsonl": ("\n\n", "no rows; expected at least one"),
    "broken.jsonl": ('{"prompt": "a"}\n{"prompt": \n', "line 2: no valid JSON"),
    "list.json": ('["a"]', "line 1: got str, expected a JSON object"),
    "digits.jsonl": ('{"prompt": ' + "1" * 5000 + "}\n", "line 1: no valid JSON"),
    "deep.jsonl": ('{"prompt": ' + "[" * 200_000 + "}\n", "line 1: no valid JSON"),
    "latin.jsonl": (b'{"prompt": "\xff"}\n', "cannot be read: 'utf-8' codec can't decode"),
    "other.jsonl": ('{"question": "a", "answer": 1}\n', "no column 'prompt', it has question, answer; set the column"),
    "quote.csv": ('prompt,a\n"x,1\n', "line 2: no valid CSV"),
    "empty.csv": ("", "no rows; expected at least one"),
    "header.csv": ("prompt,a\n", "no rows; expected at least one"),
    "short.csv": ("prompt,a\nx,1\ny\n", "line 3: got 1 values, expected 2 as in the header"),
    "twice.csv": ("prompt,a,a\nx,1,2\n", "got 2 columns 'a', expected one"),
    "semicolons.csv": ("prompt;a\nx;1\n", "line 1: got columns separated by ';', expected commas; save it with commas"),
    "tabs.csv": ("prompt\ta\nx\t1\n", r"line 1: got columns separated by '\t', expected commas"),
    "latin.csv": (b"prompt\n\xff\n", "cannot be read: 'utf-8' codec can't decode"),
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
    with pytest.raises(UserError, match=r"no data in it; expected \.jsonl"):
        read_table(str(tmp_path), [])


def test_a_folder_of_several_splits_asks_for_one_of_them(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match=r"holds several splits \(test, train\); set `split`"):
        read_table(str(tmp_path / "d"), [])
    assert len(read_table(str(tmp_path / "d" / "train"), [])) == 2
