"""Which rows a source gives, from which files, and how each is called."""

import gzip
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.data.reading import read_table
from grpovi_lightning.errors import UserError

ROWS = [{"prompt": f"say {i} , 'ü'", "answer": i, "level": ["easy", "hard"][i % 2]} for i in range(12)]
TALKS = [{"prompt": [{"role": "user", "content": f"say {i}"}], "n": i} for i in range(4)]


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """Reading local files writes nothing where `datasets` keeps copies."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    assert not (tmp_path / "cache").exists()


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_csv(rows):
    return "".join(",".join(f'"{value}"' for value in row) + "\n" for row in [list(rows[0]), *map(dict.values, rows)])


def zstd(content):
    return pa.compress(content.encode(), codec="zstd", asbytes=True)


def parquet(path, rows):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def file(name, content):
    def write(folder, rows):
        made = content(rows)
        (folder / name).write_bytes(made.encode() if isinstance(made, str) else made)
        return {"path": str(folder / name)}

    return write


def shards(folder, rows):
    for i in range(3):
        parquet(folder / "shards" / f"part-{i}.parquet", rows[4 * i : 4 * i + 4])
    return {"path": str(folder / "shards")}


def pattern(folder, rows):
    (folder / "a-2.jsonl").write_text(lines(rows[5:]))
    (folder / "a-1.jsonl.gz").write_bytes(gzip.compress(lines(rows[:5]).encode()))
    return {"path": str(folder / "a-*")}


def of_the_hub(folder, rows):
    for split, part in {"train": rows, "test": rows[:1]}.items():
        parquet(folder / "data" / f"{split}-00000-of-00001.parquet", part)
    return {"path": str(folder / "data"), "split": "train"}


def saved(folder, rows):
    Dataset.from_list(rows).save_to_disk(folder / "saved")
    return {"path": str(folder / "saved")}


def saved_splits(folder, rows):
    DatasetDict({"test": Dataset.from_list(rows[:1]), "train": Dataset.from_list(rows)}).save_to_disk(folder / "saved")
    return {"path": str(folder / "saved"), "split": "train"}


def one_parquet(folder, rows):
    parquet(folder / "a.parquet", rows)
    return {"path": str(folder / "a.parquet")}


KINDS = {
    "JSON lines": file("a.jsonl", lines),
    "JSON lines called .json": file("a.json", lines),
    "JSON array": file("a.json", lambda rows: json.dumps(rows, indent=2)),
    "JSON array on one line": file("a.jsonl", json.dumps),
    "JSON lines, gzip": file("a.jsonl.gz", lambda rows: gzip.compress(lines(rows).encode())),
    "JSON array, gzip": file("a.json.gz", lambda rows: gzip.compress(json.dumps(rows).encode())),
    "JSON lines, zstandard": file("a.jsonl.zst", lambda rows: zstd(lines(rows[:7])) + zstd(lines(rows[7:]))),
    "CSV": file("a.csv", as_csv),
    "CSV, gzip": file("a.csv.gz", lambda rows: gzip.compress(as_csv(rows).encode())),
    "CSV, zstandard": file("a.csv.zst", lambda rows: zstd(as_csv(rows))),
    "Parquet": one_parquet,
    "folder of Parquet files": shards,
    "pattern of JSON files": pattern,
    "folder with two splits": of_the_hub,
    "saved folder": saved,
    "saved folder with two splits": saved_splits,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    table = read_table(KINDS[kind](tmp_path, ROWS), ["prompt"], {"answer": "int"})
    assert list(table) == [row | {"_row": i} for i, row in enumerate(ROWS)] == [table[i] for i in range(12)]
    assert table.columns == ["prompt", "answer", "level"] and table.column("answer") == list(range(12))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "CSV" not in kind])
def test_rows_may_hold_lists_of_messages(tmp_path, kind):
    rows = TALKS * 3
    assert [row["prompt"] for row in read_table(KINDS[kind](tmp_path, rows), [])] == [row["prompt"] for row in rows]


# Which rows are taken. Each keeps its number in the whole source.

CHOICES = {
    "all": ({}, range(12)),
    "a share": ({"split": "[:75%]"}, range(9)),
    "the rest": ({"split": "[75%:]"}, range(9, 12)),
    "some": ({"split": "train[3:7]"}, range(3, 7)),
    "the end": ({"split": "[-2:]"}, range(10, 12)),
    "the first": ({"max_rows": 5}, range(5)),
    "the first of some": ({"split": "[3:9]", "max_rows": 2}, range(3, 5)),
    "more than there are": ({"max_rows": 99}, range(12)),
    "streamed": ({"max_rows": 5, "streaming": True}, range(5)),
    "streamed from the middle": ({"max_rows": 3, "streaming": True, "split": "[6:12]"}, range(6, 9)),
    "streamed to the end": ({"max_rows": 99, "streaming": True, "split": "[6:]"}, range(6, 12)),
    "streamed within": ({"max_rows": 99, "streaming": True, "split": "[6:8]"}, range(6, 8)),
}


@pytest.mark.parametrize(
    "kind", ["JSON lines", "JSON array", "CSV, gzip", "Parquet", *list(KINDS)[11:13], "saved folder"]
)
@pytest.mark.parametrize("choice", CHOICES)
def test_the_rows_that_are_asked_for_keep_their_numbers(tmp_path, kind, choice):
    settings, expected = CHOICES[choice]
    table = read_table(KINDS[kind](tmp_path, ROWS) | settings, [], {"answer": "int"})
    assert list(table) == [ROWS[i] | {"_row": i} for i in expected]


def test_a_stream_reads_no_further_than_its_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(ROWS) + "no JSON\n")
    (tmp_path / "b.jsonl").write_text("none here, either\n")
    for path in ("a.jsonl", "*.jsonl"):
        source = {"path": str(tmp_path / path), "max_rows": 12, "streaming": True}
        assert len(read_table(source, [])) == 12
    with pytest.raises(UserError, match="line 13: no valid JSON"):
        read_table(str(tmp_path / "a.jsonl"), [])


@pytest.mark.parametrize("kind", ["JSON lines", "Parquet"])
def test_a_sample_is_random_keeps_its_numbers_and_grows_into_a_larger_one(tmp_path, kind):
    source = KINDS[kind](tmp_path, ROWS)

    def sample(seed, n_rows):
        table = read_table(source | {"shuffle_seed": seed, "max_rows": n_rows}, [])
        assert all(row == ROWS[row["_row"]] | {"_row": row["_row"]} for row in table)
        return [row["_row"] for row in table]

    assert sample(1, 5) == sample(1, 9)[:5] and sorted(sample(1, 12)) == list(range(12))
    assert len({tuple(sample(seed, 5)) for seed in range(5)}) == 5 and sample(1, 5) != list(range(5))


def test_a_sample_of_some_rows_is_of_those_alone(tmp_path):
    source = KINDS["CSV"](tmp_path, ROWS) | {"split": "[6:]", "shuffle_seed": 0, "max_rows": 6}
    assert sorted(row["_row"] for row in read_table(source, [])) == list(range(6, 12))


@pytest.mark.parametrize("kind", ["JSON lines", "CSV", "folder of Parquet files", "saved folder"])
def test_columns_get_the_names_that_are_asked_for(tmp_path, kind):
    source = KINDS[kind](tmp_path, ROWS) | {"rename": {"answer": "level", "level": "how hard"}}
    table = read_table(source, ["level"], {"level": "int"})
    assert table.columns == ["prompt", "level", "how hard"]
    assert table[3] == {"prompt": ROWS[3]["prompt"], "level": 3, "how hard": "hard", "_row": 3}


@given(st.integers(1, 40), st.data())
def test_a_selection_of_a_selection_keeps_numbers(tmp_path_factory, n_rows, data):
    path = tmp_path_factory.getbasetemp() / "many.jsonl"
    path.write_text(lines({"n": i} for i in range(n_rows)))
    table = read_table(str(path), [])
    for _ in range(2):
        chosen = data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1))
        expected = [table[i] for i in chosen]
        table = table.select(chosen)
        assert list(table) == expected and all(row["n"] == row["_row"] for row in table)
        assert [table.lines[i] for i in range(len(table))] == [row["n"] + 1 for row in table]


# What is wrong is one line that names it.

SOURCES = {
    "outside": ({"split": "[5:13]"}, "split: got the rows [5:13], which are 5 to 12 counted from 0, of 12; choose"),
    "behind": ({"split": "[20:30]"}, "got the rows [20:30]"),
    "before": ({"split": "[-20:]"}, "got the rows [-20:], which are -8 to 11 counted from 0, of 12"),
    "none": ({"split": "[5:5]"}, "got the rows [5:5], which are 5 to 4 counted from 0, of 12; choose at least one"),
    "no share": ({"split": "[:1%]"}, "got the rows [:1%]"),
    "stream outside": ({"split": "[5:13]", "max_rows": 99, "streaming": True}, "got the rows [5:13]"),
    "split": ({"split": "test"}, "got split 'test', it has train"),
    "name": ({"name": "main"}, "name: got 'main', which has an effect on hub names only"),
    "revision": ({"revision": "v1"}, "revision: got 'v1', which has an effect on hub names only"),
    "rename": ({"rename": {"solution": "x"}}, "rename: no column 'solution', it has prompt, answer, level"),
    "onto": ({"rename": {"answer": "level"}}, "rename: got answer -> level, but another column has that name"),
    "two": ({"rename": {"answer": "x", "level": "x"}}, "rename: got answer -> x, but another column has that name"),
    "row": ({"rename": {"answer": "_row"}}, "the column name '_row' is taken"),
    "renamed": ({"rename": {"prompt": "x"}}, "no column 'prompt', it has x, answer, level; set the column names"),
}


@pytest.mark.parametrize("kind", ["JSON lines", "CSV", "Parquet", "folder of Parquet files"])
@pytest.mark.parametrize("name", SOURCES)
def test_rows_and_columns_that_are_not_there_are_refused(tmp_path, kind, name):
    settings, message = SOURCES[name]
    source = KINDS[kind](tmp_path, ROWS)
    with pytest.raises(UserError) as error:
        read_table(source | settings, ["prompt"])
    assert message in str(error.value) and source["path"] in str(error.value) and "\n" not in str(error.value)


def test_a_column_called_as_the_row_number_can_be_renamed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"_row": 7}\n')
    with pytest.raises(UserError, match="the column name '_row' is taken; rename it"):
        read_table(str(path), [])
    assert list(read_table({"path": str(path), "rename": {"_row": "id"}}, [])) == [{"id": 7, "_row": 0}]


JSON_ONE, JSON_OTHER = b'{"a": 1, "b": 2}\n', b'{"a": 1, "c": 2}\n'
FILES = {
    "columns": ({"1.jsonl": JSON_ONE, "2.jsonl": JSON_OTHER}, "2.jsonl has the columns a, c, but 1.jsonl has a, b"),
    "fewer columns": ({"1.csv": b"a,b\n1,2\n", "2.csv": b"a\n1\n"}, "2.csv has the columns a, but 1.csv has a, b"),
    "formats": ({"1.csv": b"a\n1\n", "2.jsonl": JSON_ONE}, "got 1.csv and 2.jsonl, expected files of one format"),
    "splits": ({"train.jsonl": JSON_ONE, "test-a.jsonl": JSON_ONE}, "holds several splits (test, train); set `split`"),
    "a split and others": ({"train-1.csv": b"a\n1\n", "more.csv": b"a\n1\n"}, "holds several splits (more, train)"),
    "nothing": ({"notes.md": b"x"}, "no data in it; expected .jsonl, .json, .csv or .parquet files"),
    "broken": ({"1.jsonl": JSON_ONE, "2.jsonl": b'{"a": 1, "b": 2}\n{"a"\n'}, "2.jsonl, line 2: no valid JSON"),
    "empty": ({"1.jsonl": b"", "2.jsonl": b"\n"}, "no rows; expected at least one"),
}


@pytest.mark.parametrize("glob", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_files_that_make_no_table_are_refused(tmp_path, name, glob):
    files, message = FILES[name]
    for file_name, content in files.items():
        (tmp_path / file_name).write_bytes(content)
    if glob and name == "nothing":
        message = "got ending '.md', expected .jsonl"
    with pytest.raises(UserError) as error:
        read_table(f"{tmp_path}/*" if glob else str(tmp_path), [])
    assert message in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_parquet_files_whose_columns_differ_in_type_are_refused(tmp_path):
    parquet(tmp_path / "1.parquet", [{"a": 1, "b": None}])
    parquet(tmp_path / "2.parquet", [{"b": 2, "a": 5}])
    assert [list(row.values()) for row in read_table(str(tmp_path), [])] == [[1, None, 0], [5, 2, 1]]
    parquet(tmp_path / "3.parquet", [{"a": "1", "b": 2}])
    with pytest.raises(UserError, match=r"a is string in 3.parquet, but int64 in 1.parquet"):
        read_table(str(tmp_path), [])


DAMAGED = {
    "cut.jsonl.gz": gzip.compress(lines(ROWS).encode())[:-9],
    "cut.jsonl.zst": zstd(lines(ROWS))[:-9],
    "plain.jsonl.gz": lines(ROWS).encode(),
    "plain.csv.zst": b"a\n1\n",
    "cut.parquet": b"PAR1",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(UserError, match=rf"^data file .*{name}: cannot be read: [^\n]+$"):
        read_table(str(tmp_path / name), [])


ARRAYS = {
    "no end": ('[{"a": 1},\n {"a": 2}', "line 2: no valid JSON (neither a comma nor the end"),
    "no comma": ('[{"a": 1}\n {"a": 2}]', "line 1: no valid JSON (neither a comma"),
    "more": ('\n[{"a": 1}]\n\n{"a": 2}', "line 2: no valid JSON (something follows the array)"),
    "broken": ('[{"a": 1},\n\n {"a": }]', "line 3: no valid JSON"),
    "last comma": ('[{"a": 1},\n]', "line 2: no valid JSON"),
    "numbers": ("\n[\n1]", "line 3: got int, expected a JSON object"),
    "deep": ('[{"a": ' + "[" * 200_000 + "}]", "line 1: no valid JSON"),
    "empty": ("[ ]", "no rows; expected at least one"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_none_is_refused_with_its_line(tmp_path, name):
    text, message = ARRAYS[name]
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError) as error:
        read_table(str(tmp_path / "a.json"), [])
    assert message in str(error.value) and "\n" not in str(error.value)


PLACES = {
    "JSON array": r"answer in row 9 \(line 47\)",
    "JSON lines": r"answer in row 9 \(line 10\)",
    "Parquet": r"answer in row 9 \(counted from 0\)",
    "folder of Parquet files": r"answer in row 9 \(part-2.parquet, its row 1, counted from 0\)",
    "pattern of JSON files": r"answer in row 9 \(a-2.jsonl, line 5\)",
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_message_says_where_a_row_stands_whatever_was_left_out(tmp_path, kind):
    table = read_table(KINDS[kind](tmp_path, ROWS) | {"split": "[4:]", "max_rows": 7}, [])
    with pytest.raises(UserError, match=rf"{PLACES[kind]}: got 9, expected text"):
        raise table.refuse(5, "answer", "text")


def test_the_log_says_what_was_read(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source = KINDS["folder of Parquet files"](tmp_path, ROWS) | {"max_rows": 5, "rename": {"answer": "solution"}}
    read_table(source, [])
    assert caplog.messages == [
        f"data files {tmp_path}/shards: 5 of 12 rows that were read (Parquet, 3 files), columns prompt, solution, level"
    ]
