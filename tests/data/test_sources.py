"""What a source's settings mean, and which of them cannot work."""

import pytest
from datasets import ReadInstruction
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.data.sources import Source
from grpovi_lightning.errors import UserError

BAD = {
    "no path": ({"split": "train"}, "no path; expected `path`"),
    "unknown": ({"path": "a", "spilt": "train"}, "no setting 'spilt'; expected `path` and, where needed, path, name"),
    "rows": ({"path": "a", "max_rows": 0}, "data a: max_rows: got 0, expected at least 1"),
    "split": ({"path": "a", "split": "train[3"}, "data a: split: got 'train[3', expected a name"),
    "two splits": ({"path": "a", "split": "train+test"}, "split: got 'train+test'"),
    "stream": ({"path": "a", "streaming": True}, "streaming without max_rows; set max_rows"),
    "share": ({"path": "a", "streaming": True, "max_rows": 3, "split": "[:80%]"}, "got [:80%] with streaming"),
    "end": ({"path": "a", "streaming": True, "max_rows": 3, "split": "[-9:]"}, "got [-9:] with streaming"),
    "seed": ({"path": "a", "shuffle_seed": -1, "max_rows": 3}, "shuffle_seed: got -1, expected at least 0"),
    "order": ({"path": "a", "shuffle_seed": 1}, "shuffle_seed without max_rows has no effect"),
    "both": ({"path": "a", "shuffle_seed": 1, "max_rows": 3, "streaming": True}, "shuffle_seed with streaming"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_cannot_work_are_one_line_that_says_why(name):
    settings, message = BAD[name]
    with pytest.raises(UserError) as error:
        Source(settings)
    assert message in str(error.value) and "\n" not in str(error.value)


places = st.none() | st.integers(-100, 100)


@given(st.integers(100, 1000), places, places)
def test_a_range_of_percentages_means_the_rows_that_it_means_to_datasets(n_rows, start, stop):
    text = f"train[{'' if start is None else f'{start}%'}:{'' if stop is None else f'{stop}%'}]"
    [expected] = ReadInstruction.from_spec(text).to_absolute({"train": n_rows})
    source = Source({"path": "a", "split": text})
    assert source.split == "train" and source.row_range.bounds(n_rows) == (expected.from_, expected.to)


@given(st.integers(1, 50), places, places)
def test_a_range_of_numbers_means_the_rows_that_it_means_to_python(n_rows, start, stop):
    text = f"[{'' if start is None else start}:{'' if stop is None else stop}]"
    first, end = Source({"path": "a", "split": text}).row_range.bounds(n_rows)
    assert list(range(n_rows))[max(first, 0) : max(end, 0)] == list(range(n_rows))[slice(start, stop)]


@pytest.mark.parametrize("split", ["train", "validation", "train_sft", "v1.0-test"])
def test_a_split_without_a_range_is_all_of_it(split):
    source = Source({"path": "a", "split": split})
    assert source.split == split and source.row_range.bounds(7) == (0, 7)
