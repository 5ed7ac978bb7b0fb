"""The files of completions themselves: how they grow, are taken up again, and are halved."""

import hashlib

import pyarrow as pa
import pytest

from grpovi_lightning.run_record.completions import CompletionSet, parts_of, read_part
from grpovi_lightning.run_record.layout import RecordError

PROMPTS = [f"prompt {i}" for i in range(16)]
IDS = [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in PROMPTS]


def rows(step, text="some text of a completion"):
    columns = {
        "step": [step] * 16,
        "prompt_id": IDS,
        "prompt": PROMPTS,
        "completion": [f"{text} {i}" for i in range(16)],
    }
    return pa.RecordBatch.from_pydict(columns)


def kept(folder, part_bytes=2800):
    return CompletionSet(folder, "train", "", part_bytes)


def grown(folder, steps, part_bytes=2800):
    folder.mkdir()
    files = kept(folder, part_bytes)
    for step in steps:
        files.append(rows(step))
    return files


def steps_in(folder):
    return [[part.first, sorted(set(read_part(part.path)["step"].to_pylist()))] for part in parts_of(folder)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stream_that_has_grown_becomes_a_parquet_file(tmp_path):
    files = grown(tmp_path / "run", range(8))
    assert steps_in(tmp_path / "run") == [[0, [0, 1, 2]], [3, [3, 4, 5]], [6, [6, 7]]]
    assert sorted(contents(tmp_path / "run")) == [
        "_train-000006.arrows",
        "train-000000.parquet",
        "train-000003.parquet",
    ]
    assert files.n_bytes == sum(map(len, contents(tmp_path / "run").values()))
    files.close()
    assert sorted(contents(tmp_path / "run"))[-1] == "train-000006.parquet"
    assert files.n_bytes == sum(map(len, contents(tmp_path / "run").values()))


@pytest.mark.parametrize("step", range(9))
@pytest.mark.parametrize("closed", [True, False], ids=["stopped", "killed"])
def test_a_run_that_goes_on_from_any_step_leaves_the_files_of_one_that_was_not_stopped(tmp_path, step, closed):
    grown(tmp_path / "straight", range(12)).close()
    first = grown(tmp_path / "run", range(8))
    if closed:
        first.close()
    again = kept(tmp_path / "run")
    again.go_on_from(step)
    assert [each for _, steps in steps_in(tmp_path / "run") for each in steps] == list(range(min(step, 8)))
    for following in range(min(step, 8), 12):
        again.append(rows(following))
    again.close()
    assert contents(tmp_path / "run") == contents(tmp_path / "straight")


def test_a_stream_that_was_not_removed_behind_its_parquet_file_counts_once(tmp_path):
    grown(tmp_path / "run", range(2))
    stream = tmp_path / "run" / "_train-000000.arrows"
    content = stream.read_bytes()
    again = kept(tmp_path / "run")
    again.go_on_from(2)
    again.close()
    stream.write_bytes(content)  # the process was killed between the two
    assert steps_in(tmp_path / "run") == [[0, [0, 1]]]
    assert [part.path.suffix for part in parts_of(tmp_path / "run")] == [".parquet"]


def test_halving_keeps_the_same_prompts_before_and_after_and_when_the_run_goes_on(tmp_path):
    files = grown(tmp_path / "run", range(4))
    before = files.n_bytes
    files.halve()
    assert files.n_bytes < before
    files.append(rows(4))
    half = {prompt for prompt, each in zip(PROMPTS, IDS, strict=True) if int(each[0], 16) < 8}
    assert 0 < len(half) < 16
    files.close()
    again = kept(tmp_path / "run")
    again.go_on_from(4)
    again.append(rows(4))
    for part in parts_of(tmp_path / "run"):
        table = read_part(part.path)
        assert set(table["prompt"].to_pylist()) == half and len(table) == len(half) * len(
            set(table["step"].to_pylist())
        )
    assert [each for _, steps in steps_in(tmp_path / "run") for each in steps] == list(range(5))
    for _ in range(64):
        again.halve()
    assert not list((tmp_path / "run").iterdir()) and again.n_bytes == 0


def test_a_run_that_goes_on_with_other_columns_begins_a_file(tmp_path):
    files = grown(tmp_path / "run", range(2))
    files.append(rows(2).append_column("rewards/new", pa.array([0.5] * 16)))
    files.close()
    assert steps_in(tmp_path / "run") == [[0, [0, 1]], [2, [2]]]


def test_a_damaged_file_is_named(tmp_path):
    grown(tmp_path / "run", range(4)).close()
    file = tmp_path / "run" / "train-000000.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RecordError, match=r"train-000000\.parquet: cannot be read as completions \(.*\); remove it"):
        kept(tmp_path / "run").go_on_from(2)
