"""Which rows come when, and what a batch of them is."""

import json
import logging
import re
import warnings
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.data import DemonstrationDataModule, PreferenceDataModule, PromptDataModule
from grpovi_lightning.data.preparation import Preparation
from grpovi_lightning.data.sampler import StepSampler
from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import step_indices

N_ROWS = 7
ROWS = [{"prompt": f"prompt {i}", "answer": i, "level": "easy"} for i in range(N_ROWS)]


@pytest.fixture
def table(tmp_path):
    def write(rows=ROWS, name="table.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def sampler(first=0, last=9, rank=0, world_size=1, seed=3, rows_per_step=4, n_rows=13, spare=0):
    return StepSampler(n_rows, rows_per_step, seed, first, last, rank, world_size, spare)


def test_the_sampler_gives_the_rows_of_each_step():
    assert list(sampler()) == [step_indices(3, step, 13, 4) for step in range(9)]


@pytest.mark.parametrize("first", [0, 1, 4, 8, 9])
def test_a_sampler_that_starts_later_gives_the_rest(first):
    assert list(sampler(first=first)) == list(sampler())[first:]


def test_the_ranks_split_every_step_between_them():
    whole = list(sampler())
    parts = [list(sampler(rank=rank, world_size=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    assert all(len(rows) == 2 for part in parts for rows in part)


class Recorder(L.LightningModule):
    """Trains nothing and writes down which rows it saw."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch.indices.tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch.indices.tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(data, checkpoint=None, kind=Recorder, **settings):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(accelerator="cpu", devices=1, num_sanity_val_steps=0, **off, **settings)
    module = kind()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data, ckpt_path=checkpoint)
    return module, trainer


def prompts(path, **settings):
    return PromptDataModule(path, **{"prompts_per_step": 2, "seed": 3, **settings})


def test_a_run_goes_through_fresh_permutations_of_the_table(table):
    module, _ = train(prompts(table()), max_steps=8)
    assert module.trained == [step_indices(3, step, N_ROWS, 2) for step in range(8)]


def test_a_resumed_run_goes_on_with_the_rows_that_would_have_come(table, tmp_path):
    whole, _ = train(prompts(table()), max_steps=8)
    first, trainer = train(prompts(table()), max_steps=3)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    rest, _ = train(prompts(table()), max_steps=8, checkpoint=tmp_path / "run.ckpt")
    assert first.trained + rest.trained == whole.trained and len(first.trained) == 3


def test_accumulating_gradients_reads_new_rows_for_every_part_of_a_step(table):
    module, trainer = train(prompts(table()), max_steps=4, max_epochs=1, accumulate_grad_batches=2)
    assert trainer.global_step == 4
    assert module.trained == [step_indices(3, step, N_ROWS, 2) for step in range(8)]


def test_a_run_counted_in_epochs_is_refused(table):
    with pytest.raises(UserError, match=r"no length: got trainer\.max_steps -1"):
        train(prompts(table()), max_epochs=1)


def test_without_a_seed_of_its_own_it_takes_the_runs(table, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    module, _ = train(prompts(table(), seed=None), max_steps=2)
    assert module.trained == [step_indices(5, step, N_ROWS, 2) for step in range(2)]


def test_held_out_rows_come_in_order_and_all_of_them(table):
    module, _ = train(prompts(table(), validation=table(name="held_out.jsonl"), validation_batch_size=3), max_steps=3)
    assert module.validated == [[0, 1, 2], [3, 4, 5], [6]]


def test_over_two_ranks_held_out_rows_are_shared_out_in_turn(table):
    data = prompts(table(), validation=table(), validation_batch_size=3)
    data.setup("fit")
    parts = []
    for rank in (0, 1):
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        parts.append([index for batch in data.val_dataloader() for index in batch.indices.tolist()])
    assert parts == [[0, 2, 4, 6], [1, 3, 5]]


def test_without_a_held_out_table_there_is_nothing_to_validate(table):
    data = prompts(table())
    data.setup("fit")
    assert data.val_dataloader() == []


def test_equal_held_out_rows_have_equal_digests_and_others_do_not(table):
    changed = [*ROWS[:-1], {**ROWS[-1], "answer": 9}]
    sets = {"same": ROWS, "copy": ROWS, "changed": changed, "fewer": ROWS[:-1], "order": ROWS[::-1], "none": None}
    found = {}
    for name, rows in sets.items():
        data = prompts(table(), validation=None if rows is None else table(rows, f"{name}.jsonl"))
        data.setup("fit")
        found[name] = data.held_out_digest()
    assert found.pop("none") is None and found["copy"] == found.pop("same")
    assert len(set(found.values())) == len(found)


def test_rows_that_do_not_divide_over_the_processes_are_refused_with_both_numbers(table):
    with pytest.raises(UserError, match="3 rows do not divide over 2 processes"):
        prompts(table(), prompts_per_step=3).check(world_size=2)


def test_a_table_smaller_than_one_step_is_refused_before_training(table):
    with pytest.raises(UserError, match="too few rows: got 7, expected at least the 8 of one step"):
        train(prompts(table(), prompts_per_step=8), max_epochs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts_per_step": 0}, "batch_size: got 0"),
        ({"validation_batch_size": -1}, "validation_batch_size: got -1"),
    ],
)
def test_a_batch_of_no_rows_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PromptDataModule("unread.jsonl", **settings)


def collated(data, chosen=(4, 2)):
    data.setup("fit")
    return data.collate([data.tables["train"][i] for i in chosen])


def test_prompts_carry_their_row_number_and_every_other_column(table):
    batch = collated(prompts(table()))
    assert batch.texts == ["prompt 4", "prompt 2"] and batch.indices.tolist() == [4, 2]
    assert batch.columns == {"answer": [4, 2], "level": ["easy", "easy"]}


def test_training_prompts_are_found_by_their_numbers_also_where_rows_before_them_were_left_out(table):
    rows = [ROWS[0], ROWS[1], ROWS[1], ROWS[2], ROWS[3]]
    data = prompts(table(rows), columns=["answer"], preparation=Preparation(deduplicate=True))
    data.setup("fit")
    assert data.tables["train"].ids == [0, 1, 3, 4]
    batch = data.prompts([4, 1])
    assert batch.texts == ["prompt 3", "prompt 1"] and batch.indices.tolist() == [4, 1]
    assert batch.columns == {"answer": [3, 1]} and batch.spare is None
    with pytest.raises(UserError, match=r"train table: got no row 2, expected the one .* remembered") as error:
        data.prompts([4, 2])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("columns", [[], ["level"]])
def test_only_the_named_columns_are_handed_over(table, columns):
    assert list(collated(prompts(table(), columns=columns)).columns) == columns


def test_the_prompt_may_stand_under_another_name(table):
    path = table([{"question": "why", "prompt": 3}] * 2)
    batch = collated(prompts(path, prompt_column="question"), chosen=(0, 1))
    assert batch.texts == ["why", "why"] and batch.columns == {"prompt": [3, 3]}


def test_a_column_that_is_not_there_is_an_error_when_the_table_is_read(table):
    with pytest.raises(UserError, match="no column 'difficulty', it has prompt, answer, level"):
        prompts(table(), columns=["difficulty"]).setup("fit")
    with pytest.raises(UserError, match="no column 'question'"):
        prompts(table(), prompt_column="question").setup("fit")


WHOLE = {"prompt": "a", "completion": "b", "chosen": "c", "rejected": "d"}
NO_TEXT = {"number": 3, "null": None, "list": ["a", "b"], "half a character": "\ud800"}


def refused(data, stage="fit"):
    with pytest.raises(UserError) as error:
        data.setup(stage)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("value", NO_TEXT)
@pytest.mark.parametrize(
    ("kind", "column"),
    [(PromptDataModule, "prompt")]
    + [(DemonstrationDataModule, column) for column in ("prompt", "completion")]
    + [(PreferenceDataModule, column) for column in ("prompt", "chosen", "rejected")],
)
def test_a_row_without_its_text_is_an_error_when_the_table_is_read(table, kind, column, value):
    path = table([*[WHOLE] * 39, WHOLE | {column: NO_TEXT[value]}])
    got = re.escape(repr(NO_TEXT[value]))
    for data in (kind(path), kind(table([WHOLE], "good.jsonl"), validation=path)):
        assert re.search(f"table.jsonl: {column} in row 39 \\(line 40\\): got {got}, expected ", refused(data))


@pytest.mark.parametrize("ending", [".parquet", ""])
def test_a_row_of_a_table_without_lines_is_named_by_its_number(tmp_path, ending):
    path, rows = tmp_path / f"table{ending}", Dataset.from_list([{"prompt": "a"}, {"prompt": None}])
    rows.to_parquet(path) if ending else rows.save_to_disk(path)
    assert "prompt in row 1 (counted from 0): got None, expected text" in refused(PromptDataModule(str(path)))


@pytest.mark.parametrize("kind", [PromptDataModule, DemonstrationDataModule])
def test_an_empty_prompt_is_refused_when_the_table_is_read(tmp_path, kind):
    (tmp_path / "a.csv").write_text("prompt,completion\na,b\n,b\n")
    assert "prompt in row 1 (line 3): got '', expected text that is not empty" in refused(kind(str(tmp_path / "a.csv")))


def test_columns_that_nobody_asked_for_may_hold_anything(table):
    path = table([WHOLE, WHOLE | {"rejected": None, "chosen": 3}])
    assert len(collated(DemonstrationDataModule(path), chosen=(1,))["prompt"]) == 1


def test_types_of_a_csv_file_reach_the_reward_function(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,answer,level\na,007,3\nb,NA,4\n")
    data = prompts(str(tmp_path / "a.csv"), csv_types={"level": "int"})
    assert collated(data, chosen=(1, 0)).columns == {"answer": ["NA", "007"], "level": [4, 3]}


def test_types_without_a_csv_file_are_refused(table):
    with pytest.raises(UserError, match=r"csv_types: got {'level': 'int'} without a CSV file"):
        prompts(table(), csv_types={"level": "int"}).setup("fit")


def test_demonstrations_are_prompts_and_completions(table):
    path = table([{"q": "a", "c": "b", "x": 1}, {"q": "d", "c": "e", "x": 1}])
    batch = collated(DemonstrationDataModule(path, prompt_column="q", completion_column="c"), chosen=(1, 0))
    assert batch == {"prompt": ["d", "a"], "completion": ["e", "b"]}


def test_preferences_are_prompts_with_a_chosen_and_a_rejected_completion(table):
    path = table([{"prompt": "a", "good": "b", "bad": "c"}])
    data = PreferenceDataModule(path, chosen_column="good", rejected_column="bad")
    assert collated(data, chosen=(0,)) == {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}


@pytest.mark.parametrize("kind", [DemonstrationDataModule, PreferenceDataModule])
def test_pairs_without_their_columns_are_refused(table, kind):
    with pytest.raises(UserError, match="no column"):
        kind(table()).setup("fit")


# Spare rows.


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.integers(0, 9), st.integers(0, 5))
def test_the_ranks_share_out_a_steps_rows_and_then_its_spare_ones(world_size, own, extra, unused, seed):
    per_step, spare = own * world_size, extra * world_size
    n_rows = per_step + spare + unused
    settings = {"world_size": world_size, "seed": seed, "rows_per_step": per_step, "n_rows": n_rows, "last": 4}
    parts = [list(sampler(rank=rank, spare=spare, **settings)) for rank in range(world_size)]
    for step in range(4):
        shares = [part[step] for part in parts]
        assert all(len(rows) == own + extra for rows in shares)
        assert [row for rows in shares for row in rows[:own]] == step_indices(seed, step, n_rows, per_step)
        together = [row for rows in shares for row in rows]
        assert len(set(together)) == len(together) == per_step + spare and set(together) <= set(range(n_rows))


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_spare_rows_of_a_step_do_not_depend_on_the_number_of_processes(world_size):
    parts = [list(sampler(rank=rank, world_size=world_size, spare=6)) for rank in range(world_size)]
    own = 4 // world_size
    spare = [[row for rows in shares for row in rows[own:]] for shares in zip(*parts, strict=True)]
    assert spare == [rows[4:] for rows in sampler(spare=6)]


def test_a_sampler_that_starts_later_gives_the_same_spare_rows():
    assert list(sampler(first=5, spare=3)) == list(sampler(spare=3))[5:]


class SpareRecorder(Recorder):
    """Writes down the spare rows, too."""

    def __init__(self):
        super().__init__()
        self.spare, self.held_out_spare = [], []

    def training_step(self, batch, batch_idx):
        self.spare.append(None if batch.spare is None else batch.spare.indices.tolist())
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.held_out_spare.append(batch.spare)
        super().validation_step(batch, batch_idx)


def test_a_run_trains_on_the_same_rows_whether_or_not_there_are_spare_ones(table):
    without, _ = train(prompts(table()), kind=SpareRecorder, max_steps=6)
    found, _ = train(prompts(table(), spare_prompts_per_step=3), kind=SpareRecorder, max_steps=6)
    assert found.trained == without.trained and without.spare == [None] * 6
    assert all(len({*own, *spare}) == 5 for own, spare in zip(found.trained, found.spare, strict=True))
    assert len({tuple(spare) for spare in found.spare}) > 1


def test_a_resumed_run_gets_the_spare_rows_that_would_have_come(table, tmp_path):
    def run(**settings):
        return train(prompts(table(), spare_prompts_per_step=3), kind=SpareRecorder, **settings)

    whole, _ = run(max_steps=6)
    first, trainer = run(max_steps=2)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    rest, _ = run(max_steps=6, checkpoint=tmp_path / "run.ckpt")
    assert first.spare + rest.spare == whole.spare and first.trained + rest.trained == whole.trained


def test_held_out_prompts_have_no_spare_ones(table):
    held_out = {"validation": table(name="held_out.jsonl"), "validation_batch_size": 3}
    data = prompts(table(), spare_prompts_per_step=3, **held_out)
    module, _ = train(data, kind=SpareRecorder, max_steps=3)
    assert module.validated == [[0, 1, 2], [3, 4, 5], [6]] and module.held_out_spare == [None] * 3


def as_rank(data, rank, world_size, max_steps):
    """The data module as it stands in one process of a run."""
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(ready=0)))
    data.trainer = SimpleNamespace(
        lightning_module=None,
        world_size=world_size,
        global_rank=rank,
        max_steps=max_steps,
        accumulate_grad_batches=1,
        fit_loop=SimpleNamespace(epoch_loop=progress),
    )
    return data


@pytest.mark.parametrize(("per_step", "spare"), [(2, 2), (2, 4), (4, 2)])
def test_over_two_ranks_each_batch_has_its_share_of_the_prompts_and_of_the_spare_ones(table, per_step, spare):
    data = prompts(table(), prompts_per_step=per_step, spare_prompts_per_step=spare)
    data.setup("fit")
    whole = list(as_rank(data, 0, 1, max_steps=3).train_dataloader())
    parts = [list(as_rank(data, rank, 2, max_steps=3).train_dataloader()) for rank in (0, 1)]
    for both, *shares in zip(whole, *parts, strict=True):
        assert len(both) == per_step and len(both.spare) == spare
        assert [len(batch) for batch in shares] == [per_step // 2] * 2
        assert [len(batch.spare) for batch in shares] == [spare // 2] * 2
        assert torch.cat([batch.indices for batch in shares]).equal(both.indices)
        assert torch.cat([batch.spare.indices for batch in shares]).equal(both.spare.indices)


def test_spare_prompts_carry_their_row_number_and_columns(table):
    data = prompts(table(), spare_prompts_per_step=3, columns=["answer"])
    data.setup("fit")
    batch = data.collate_training([data.tables["train"][i] for i in (4, 2, 6, 0, 1)])
    assert batch.texts == ["prompt 4", "prompt 2"] and batch.columns == {"answer": [4, 2]}
    assert batch.spare.texts == ["prompt 6", "prompt 0", "prompt 1"] and batch.spare.indices.tolist() == [6, 0, 1]
    assert batch.spare.columns == {"answer": [6, 0, 1]} and batch.spare.spare is None


def test_spare_rows_that_do_not_divide_over_the_processes_are_refused_with_both_numbers(table):
    data = prompts(table(), spare_prompts_per_step=3)
    data.check(world_size=1)
    with pytest.raises(UserError, match="3 spare rows do not divide over 2 processes") as error:
        data.check(world_size=2)
    assert "\n" not in str(error.value)


def test_too_few_rows_for_a_step_and_its_spare_ones_are_refused_with_all_three_numbers(table):
    prompts(table(), spare_prompts_per_step=5).check(world_size=1)
    expected = "too few rows: got 7, expected at least the 2 of one step and 6 spare ones"
    with pytest.raises(UserError, match=expected) as error:
        prompts(table(), spare_prompts_per_step=6).check(world_size=1)
    assert "\n" not in str(error.value)


def test_less_than_no_spare_prompts_are_refused():
    with pytest.raises(UserError, match="spare_prompts_per_step: got -1, expected at least 0"):
        PromptDataModule("unread.jsonl", spare_prompts_per_step=-1)
