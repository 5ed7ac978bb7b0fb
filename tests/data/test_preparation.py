"""What is held out, left out and said of the tables of a run."""

import hashlib
import json
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.data import DemonstrationDataModule, PreferenceDataModule, Preparation, PromptDataModule
from grpovi_lightning.data.preparation import digest, shared_prompts, split, without_repeats
from grpovi_lightning.data.tables import Table
from grpovi_lightning.errors import UserError

KINDS = [PromptDataModule, DemonstrationDataModule, PreferenceDataModule]


def talk(text):
    return [{"role": "user", "content": text}]


def table(prompts):
    rows = [{"prompt": prompt, "n": n} for n, prompt in enumerate(prompts)]
    return Table("table", "JSON", ["prompt", "n"], rows, range(len(rows)))


def prompt(row):
    return row["prompt"]


@pytest.fixture
def write(tmp_path):
    def file(prompts, name="train.jsonl"):
        rows = [{"prompt": p, "completion": f"c{p}", "chosen": "a", "rejected": f"r{p}"} for p in prompts]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return file


# Holding out by hash.

prompts = st.text(max_size=3) | st.text(max_size=3).map(talk)
fractions = st.floats(0.2, 0.8)


def parted(asked, preparation):
    """The numbers of the rows of each part; None where one of them is empty."""
    try:
        return [[row["n"] for row in part] for part in split(table(asked), prompt, preparation)]
    except UserError:
        return None


@given(st.lists(prompts, min_size=1, max_size=30), fractions, st.text(max_size=2))
def test_each_row_is_on_one_side_and_no_prompt_is_on_both(asked, fraction, salt):
    parts = parted(asked, Preparation(held_out_fraction=fraction, held_out_salt=salt))
    if parts is None:
        return
    assert sorted(parts[0] + parts[1]) == list(range(len(asked))) and all(part == sorted(part) for part in parts)
    sides = [{digest(asked[n]) for n in part} for part in parts]
    assert not sides[0] & sides[1]


@given(st.lists(prompts, min_size=1, max_size=30), st.lists(prompts, max_size=9), fractions, st.randoms())
def test_neither_order_nor_further_rows_move_a_prompt_to_the_other_side(asked, more, fraction, random):
    preparation = Preparation(held_out_fraction=fraction)
    before = [digest(each) for each in asked if preparation.is_held_out(each)]
    mixed = [*asked, *more]
    random.shuffle(mixed)
    parts = parted(mixed, preparation)
    if parts is not None:
        held_out = {digest(mixed[n]) for n in parts[1]}
        assert {each for each in map(digest, asked) if each in held_out} == set(before)


@given(st.lists(prompts, min_size=1), fractions, st.floats(0, 0.2))
def test_a_smaller_part_is_held_out_of_a_larger_one(asked, fraction, less):
    larger, smaller = Preparation(held_out_fraction=fraction), Preparation(held_out_fraction=fraction - less)
    assert all(larger.is_held_out(each) for each in asked if smaller.is_held_out(each))


def test_about_the_fraction_is_held_out_and_another_salt_holds_out_others():
    asked = [f"prompt {i}" for i in range(4000)]
    first, other = (Preparation(held_out_fraction=0.25, held_out_salt=salt) for salt in ("", "b"))
    counts = [sum(map(each.is_held_out, asked)) for each in (first, other)]
    both = sum(first.is_held_out(each) and other.is_held_out(each) for each in asked)
    assert all(abs(count - 1000) < 100 for count in counts)  # over 3 standard deviations
    assert abs(both - 250) < 60


def test_a_prompt_is_held_out_by_its_hash_alone():
    """Made with hashlib and json: other machines and versions hold out the same."""
    half = Preparation(held_out_fraction=0.5, held_out_salt="s")
    asked = ["a", "b", "c", "ü", *map(talk, "abcdefgh")]
    texts = [json.dumps(["s", each], separators=(",", ":"), sort_keys=True) for each in asked]
    first = [hashlib.sha256(text.encode()).digest()[0] for text in texts]
    assert [half.is_held_out(each) for each in asked] == [byte < 128 for byte in first]
    assert min(first) < 128 <= max(first)


def test_messages_are_the_same_whatever_the_order_of_their_keys_and_the_keys_without_a_value():
    assert digest(talk("a")) == digest([{"content": "a", "role": "user", "tool_calls": None}])
    different = [
        talk("a"),
        talk("b"),
        "a",
        "",
        None,
        [],
        1,
        1.5,
        [talk("a")],
        talk("a") * 2,
        "\ud800",
        {"role": "user"},
    ]
    assert len({digest(value) for value in different}) == len(different)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_prompts_keep_their_numbers_and_are_validated_on(write, kind, caplog):
    caplog.set_level(logging.INFO)
    path = write([f"p{i % 20}" for i in range(40)])
    data = kind(path, preparation=Preparation(held_out_fraction=0.3))
    whole = kind(path)
    for each in (data, whole):
        each.setup("fit")
    train, held_out = data.tables["train"], data.tables["validation"]
    assert sorted([*train, *held_out], key=lambda row: row["_row"]) == list(whole.tables["train"])
    assert shared_prompts(train, held_out, data.rows.asked)[0] == 0 and len(held_out) % 2 == 0
    assert f"train table: {len(train)} rows to train on and {len(held_out)} held out, by their prompts" in caplog.text
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)
    assert len(list(data.val_dataloader())) == 1 and not data.lacks("validation") and whole.lacks("validation")


WHOLE = [{"role": "system", "content": "s"}, *talk("a"), {"role": "assistant", "content": "b"}, *talk("c")]


@pytest.mark.parametrize(
    ("kind", "row", "asked"),
    [
        (PromptDataModule, {"prompt": talk("a"), "answer": 1}, talk("a")),
        (DemonstrationDataModule, {"prompt": "a", "completion": "b"}, "a"),
        (DemonstrationDataModule, {"messages": WHOLE}, WHOLE[:2]),
        (PreferenceDataModule, {"prompt": talk("a"), "chosen": [], "rejected": []}, talk("a")),
        (PreferenceDataModule, {"chosen": WHOLE[:3], "rejected": [*WHOLE[:2], WHOLE[2] | {"content": "d"}]}, WHOLE[:2]),
        (PreferenceDataModule, {"chosen": "a b c", "rejected": "a b d"}, "a b"),
    ],
)
def test_what_is_held_out_together_asks_the_same_whatever_the_answer(kind, row, asked):
    assert kind("unread.jsonl").rows.asked(row) == asked


# Repeats and prompts that are on both sides.


@given(st.lists(prompts, max_size=20))
def test_the_first_of_equal_prompts_is_kept(asked):
    found = [row["n"] for row in without_repeats(table(asked), prompt)]
    assert found == [n for n in range(len(asked)) if asked[n] not in asked[:n]]


@pytest.mark.parametrize(("kind", "kept"), [(PromptDataModule, [0, 1]), (PreferenceDataModule, [0, 1, 3])])
def test_prompts_are_the_same_by_themselves_and_other_rows_as_a_whole(tmp_path, kind, kept, caplog):
    caplog.set_level(logging.INFO)
    rows = [("a", "x"), ("b", "x"), ("a", "x"), ("a", "y")]
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n" + "".join(f"{p},{c},z\n" for p, c in rows))
    data = kind(str(tmp_path / "a.csv"), preparation=Preparation(deduplicate=True))
    data.setup("fit")
    assert [row["_row"] for row in data.tables["train"]] == kept
    assert f"train table: {4 - len(kept)} of 4 rows left out, which occur before" in caplog.text


def test_prompts_of_separate_tables_that_are_trained_on_are_counted(write, caplog):
    caplog.set_level(logging.INFO)
    sets = {"easy": write("abx", "easy.jsonl"), "other": write("yz", "other.jsonl")}
    PromptDataModule(write("abc"), validation=sets, test=write("aa", "test.jsonl")).setup("fit")
    said = [text for text in caplog.messages if "train table, too" in text]
    assert said == [
        "test table: 1 of its 1 prompts are in the train table, too",
        "validation/easy table: 2 of its 3 prompts are in the train table, too",
    ]


# Several held-out sets.


def test_held_out_sets_come_in_their_order_each_with_its_loader(write):
    sets = {"hard": write("xyz", "hard.jsonl"), "easy": {"path": write("abcd", "easy.jsonl"), "split": "[1:3]"}}
    data = PromptDataModule(write("ab"), validation=sets)
    data.setup("fit")
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)
    assert data.held_out_names == ["hard", "easy"] and not data.lacks("validation")
    batches = [[batch.indices.tolist() for batch in loader] for loader in data.val_dataloader()]
    assert batches == [[[0, 1, 2]], [[1, 2]]]


@pytest.mark.parametrize("validation", [None, "table", {"path": "table", "split": "[:1]"}])
def test_a_single_held_out_set_has_no_name(write, validation):
    path = write("ab")
    if validation == "table":
        validation = path
    elif validation:
        validation = validation | {"path": path}
    data = PromptDataModule(path, validation=validation)
    data.setup("fit")
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)
    loader = data.val_dataloader()
    assert data.held_out_names == [] and (loader == [] if validation is None else len(loader) == 1)


# What cannot be.

WRONG = {
    "both": (
        {"validation": "x.jsonl", "preparation": {"held_out_fraction": 0.1}},
        "held_out_fraction: got 0.1 with a validation table, expected one of the two",
    ),
    "fraction": ({"preparation": {"held_out_fraction": 1.0}}, "held_out_fraction: got 1.0, expected a part"),
    "negative": ({"preparation": {"held_out_fraction": -0.1}}, "held_out_fraction: got -0.1, expected a part"),
    "salt": ({"preparation": {"held_out_salt": "a"}}, "held_out_salt without held_out_fraction has no effect"),
    "tokens": ({"preparation": {"max_tokens": 0}}, "preparation.max_tokens: got 0, expected at least 1"),
    "no sets": ({"validation": {}}, "validation: got no held-out set"),
    "setting": ({"validation": {"split": "test"}}, "got a set named 'split', which is a setting; a single set needs"),
    "name": ({"validation": {"a/b": "x.jsonl"}}, "got a set named 'a/b', expected letters, digits, - and _"),
    "source": ({"test": {"path": "x", "streaming": True}}, "data x: streaming without max_rows"),
    "in a set": ({"validation": {"a": {"path": "x", "max_rows": 0}}}, "data x: max_rows: got 0"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_work_are_refused_before_anything_is_read(kind, name):
    settings, message = WRONG[name]
    with pytest.raises(UserError) as error:
        kind("unread.jsonl", **settings | {"preparation": Preparation(**settings.get("preparation", {}))})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fraction", "counts"), [(1e-9, "3 rows to train on and holds out 0"), (1 - 1e-9, "0 rows to")]
)
def test_a_part_without_rows_is_refused(write, fraction, counts):
    data = PromptDataModule(write("abc"), preparation=Preparation(held_out_fraction=fraction))
    with pytest.raises(UserError, match=rf"train.jsonl: preparation.held_out_fraction: got {fraction}, .* {counts}"):
        data.setup("fit")
