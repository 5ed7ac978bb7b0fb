import hashlib
import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from grpovi_lightning.data.embedded import build_tokenizer, gold_reward, parse, write_task
from grpovi_lightning.data.embedded.size import TaskSize
from grpovi_lightning.errors import UserError

SMALL: dict[str, Any] = {
    "n_train": 300, "n_validation": 40, "n_test": 40, "n_demonstrations": 200, "n_validation_demonstrations": 30,
    "n_pairs": 200, "n_validation_pairs": 30,
}  # fmt: skip
LARGE_WORDS: dict[str, Any] = {
    "n_nouns": 1000, "n_adjectives": 300, "n_verbs": 300, "n_tone_words": 50, "max_topics": 6, "max_words": 60,
    "max_completion_length": 80,
}  # fmt: skip
LINE_COUNTS = {
    "prompts_train": 300, "prompts_validation": 40, "prompts_test": 40, "demonstrations": 200,
    "demonstrations_validation": 30, "preferences": 200, "preferences_validation": 30,
}  # fmt: skip


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(str(tmp_path_factory.mktemp("task") / "task"), seed=3, **SMALL)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(task: Path, tmp_path: Path):
    same, other = write_task(str(tmp_path / "same"), seed=3, **SMALL), write_task(str(tmp_path / "other"), 4, **SMALL)
    assert hashes(same) == hashes(task)
    differing = {name for name, digest in hashes(other).items() if digest != hashes(task)[name]}
    assert differing == {"task.json", *(f"{name}.jsonl" for name in LINE_COUNTS)}


def test_the_files_have_the_lines_and_columns_asked_for(task: Path):
    assert {name: len(rows(task, name)) for name in LINE_COUNTS} == LINE_COUNTS
    for row in rows(task, "prompts_train"):
        instruction = parse(row["prompt"])
        assert row["topics"] == [str(topic) for topic in instruction.topics]
        assert (row["tone"], row["length"]) == (instruction.tone, instruction.length)
    assert all(row.keys() == {"prompt", "completion"} for row in rows(task, "demonstrations_validation"))
    assert all(row.keys() == {"prompt", "chosen", "rejected"} for row in rows(task, "preferences_validation"))


def test_no_prompt_occurs_twice_within_or_across_files(task: Path):
    prompts = [row["prompt"] for name in LINE_COUNTS for row in rows(task, name)]
    assert len(prompts) == len(set(prompts)) == sum(LINE_COUNTS.values())


def test_more_training_prompts_leave_the_held_out_sets_as_they_are(task: Path, tmp_path: Path):
    larger = write_task(str(tmp_path / "larger"), seed=3, **(SMALL | {"n_train": 500}))
    for name in ("prompts_validation", "prompts_test", "demonstrations_validation", "preferences_validation"):
        assert rows(larger, name) == rows(task, name)


@pytest.mark.parametrize("sizes", [{}, LARGE_WORDS], ids=["default", "large"])
def test_the_saved_tokenizer_reads_back_every_text_word_by_word(sizes: dict[str, Any], tmp_path: Path):
    folder = write_task(str(tmp_path / "task"), **(SMALL | sizes))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    texts = [row[key] for name in LINE_COUNTS for row in rows(folder, name) for key in row if isinstance(row[key], str)]
    texts = [text for text in texts if " " in text]  # not the tone column
    longest = sizes.get("max_completion_length", 24)
    for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert tokenizer.unk_token_id not in ids and tokenizer.eos_token_id not in ids
        assert len(ids) == len(text.split())
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    answers = [row["completion"] for row in rows(folder, "demonstrations")]
    answers += [row[key] for row in rows(folder, "preferences") for key in ("chosen", "rejected")]
    assert all(5 <= len(ids) + 1 <= longest for ids in tokenizer(answers).input_ids)


def test_the_tokenizer_pads_prompts_on_the_left_and_has_its_special_tokens(task: Path):
    tokenizer = AutoTokenizer.from_pretrained(task / "tokenizer")
    batch = tokenizer(["happy :", "tell a story of the fox :"], padding=True)
    assert batch["attention_mask"] == [[0, 0, 0, 0, 0, 1, 1], [1] * 7]
    assert batch["input_ids"][0][0] == tokenizer.pad_token_id == 0
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == ("<pad>", "<eos>", "<unk>")
    assert tokenizer("unicorn").input_ids == [tokenizer.unk_token_id]
    assert (
        len(tokenizer)
        == len(build_tokenizer(TaskSize()))
        == 3 + json.loads((task / "task.json").read_text())["n_word_types"]
    )


def test_the_gold_reward_works_from_the_written_lines_as_trl_calls_it(task: Path):
    lines = rows(task, "demonstrations")
    rewards = gold_reward(
        prompts=[line["prompt"] for line in lines], completions=[line["completion"] for line in lines],
        completion_ids=None,
    )  # fmt: skip
    described = json.loads((task / "task.json").read_text())["statistics"]["demonstrations"]
    assert sum(rewards) / len(rewards) == pytest.approx(described["mean"])


def test_the_description_states_parameters_counts_and_statistics(task: Path):
    described = json.loads((task / "task.json").read_text())
    arguments = inspect.signature(write_task).parameters.keys() - {"output", "sizes"}
    assert described["parameters"].keys() == arguments | {field.name for field in fields(TaskSize)}
    assert described["parameters"]["seed"] == 3 and described["parameters"]["n_train"] == 300
    assert 100 <= described["n_word_types"] <= 300
    assert described["n_distinct_prompts"] > 100_000
    assert 0.75 < described["statistics"]["preferences"]["bayes_accuracy"] < 0.95


def test_writing_a_finished_task_again_touches_nothing(tmp_path: Path):
    folder = write_task(str(tmp_path / "task"), **SMALL)
    (folder / "prompts_test.jsonl").write_text("a sign that nothing is written again")
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_task(str(tmp_path / "task"), **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_a_folder_with_another_task_is_refused_and_left_alone(tmp_path: Path):
    folder = write_task(str(tmp_path / "task"), **SMALL)
    before = hashes(folder)
    with pytest.raises(UserError, match=r"different task \(seed=0 not 1, n_train=300 not 301\).*another output folder"):
        write_task(str(folder), seed=1, **(SMALL | {"n_train": 301}))
    assert hashes(folder) == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("notes.txt", "mine", "holds other files and no task.json"),
        ("task.json", "[]", "is no task description"),
        ("task.json", "{", "is no task description"),
        ("task.json", '{"generator_version": 0, "parameters": {}}', "generator version 0: expected version"),
    ],
)
def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        write_task(str(tmp_path), **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == text


def test_an_output_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "task").write_text("mine")
    with pytest.raises(UserError, match="a file: expected a folder"):
        write_task(str(tmp_path / "task"), **SMALL)


def test_an_empty_folder_and_missing_parents_are_filled(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        assert (write_task(str(folder), **SMALL) / "task.json").exists()


def test_a_failure_midway_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("grpovi_lightning.data.embedded.task.compare", fail)
    with pytest.raises(OSError, match="disk full"):
        write_task(str(tmp_path / "task"), **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"seed": -1}, "got seed=-1: expected 0 or more; give a non-negative integer"),
        ({"n_train": 0}, "got n_train=0: expected at least 1; give a positive number"),
        ({"preference_scale": 0.0}, "got preference_scale=0.0: expected a positive number; try the default"),
        ({"preference_scale": float("nan")}, "got preference_scale=nan: expected a positive number"),
        ({"n_nouns": 2}, "got n_nouns=2: expected 8 to 20000; choose"),
        (
            {"n_train": 50_000, "n_nouns": 8, "n_adjectives": 4, "max_topics": 1},
            "expected at most half of the 7680 prompts of this language; lower the counts or raise n_nouns",
        ),
    ],
)
def test_parameters_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, parameters: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        write_task(str(tmp_path / "task"), **(SMALL | parameters))
    assert list(tmp_path.iterdir()) == []


def test_every_argument_of_the_command_line_is_typed_and_described():
    documentation = inspect.getdoc(write_task) or ""
    for name, parameter in inspect.signature(write_task).parameters.items():
        assert parameter.annotation in (int, float, str)
        assert f"    {name}: " in documentation
