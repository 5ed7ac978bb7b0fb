"""What a run keeps of its completions: every one, once, in the words that were sampled."""

import math
import os
import random
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import lightning as L
import pyarrow as pa
import pytest
from helpers.nasty import NASTY, WRITTEN
from helpers.threads import two_threads  # noqa: F401  applies to all tests here
from helpers.two_processes import run_in_two_processes
from modules.grpo_runs import PROMPTS, graded, grpo, prompt_data, quiet, train, trainer
from modules.held_out_sets import SETS, named_sets
from modules.module_kinds import KINDS, fit

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.callbacks import CompletionFiles, RunStatus
from grpovi_lightning.callbacks.completions import prompt_id
from grpovi_lightning.conversations import Conversation
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses import GRPOLoss
from grpovi_lightning.modules import GRPOModule
from grpovi_lightning.rewards import CompositeReward, RewardFunction
from grpovi_lightning.run_record.completions import parts_of, read_part
from grpovi_lightning.run_record.layout import COMPLETIONS_FOLDER


def table(folder, split="train", name=""):
    """Rows of a set."""
    parts = [part for part in parts_of(Path(folder) / COMPLETIONS_FOLDER) if (part.split, part.set) == (split, name)]
    return pa.concat_tables([read_part(part.path) for part in parts]).to_pylist() if parts else []


def contents(folder):
    return {path.name: path.read_bytes() for path in (Path(folder) / COMPLETIONS_FOLDER).iterdir()}


def steps(rows):
    return sorted({row["step"] for row in rows})


def half_scored(prompts, completions, completion_ids, **columns):
    return [None if ids[0] % 2 else 0.25 for ids in completion_ids]


@pytest.fixture(scope="module")
def run(policy_folder, tmp_path_factory):
    """What three steps returned, and their folder."""
    folder = tmp_path_factory.mktemp("run")
    reward = CompositeReward([RewardFunction(graded, name="graded"), RewardFunction(half_scored, name="half")], [1, 0])
    module = grpo(policy_folder, reward, adjustment=VarianceIncrease())
    return train(module, folder, 3, CompletionFiles(), validate_every=2), folder


def test_a_training_row_says_what_the_step_returned(run):
    recorded, folder = run
    rows = {(row["step"], row["row"], row["member"]): row for row in table(folder)}
    assert len(rows) == 3 * 3 * 4
    for step, output in enumerate(recorded.outputs):
        rollout = output.rollout
        for i, text in enumerate(rollout.texts):
            p, g = divmod(i, 4)
            row = rows[step, int(rollout.prompts.indices[p]), g]
            kept = int(rollout.completion_mask[i].sum())
            logprobs = [float(each) for each in rollout.old_logprobs[i, :kept]]
            reference = [float(each) for each in rollout.ref_logprobs[i, :kept]]
            assert row["prompt"] == rollout.prompts.texts[p] == PROMPTS[row["row"]] and row["completion"] == text
            assert row["prompt_id"] == prompt_id(row["prompt"])
            found = [row[name] for name in ("reward", "adjusted", "advantage")]
            assert found == [float(each[p, g]) for each in (output.rewards, output.adjusted.rewards, output.advantages)]
            for name, component in output.scored.components.items():
                assert row[f"rewards/{name}"] == pytest.approx(float(component[i]), nan_ok=True)
            assert row["length"] == kept and row["truncated"] is bool(rollout.truncated[i])
            assert row["logprob"] == pytest.approx(sum(logprobs), rel=1e-12)
            k3 = [math.exp(r - p) - (r - p) - 1 for p, r in zip(logprobs, reference, strict=True)]
            assert row["kl"] == pytest.approx(sum(k3) / kept, rel=1e-6, abs=1e-15)
    assert any(math.isnan(row["rewards/half"]) for row in rows.values())
    assert any(row["kl"] > 1e-6 for key, row in rows.items() if key[0])


def test_held_out_rows_have_a_reward_and_neither_adjusted_reward_nor_advantage(run):
    rows = table(run[1], "held_out")
    assert [(row["step"], row["row"]) for row in rows] == [(step, p) for step in (0, 2) for p in range(3)]
    assert [row["prompt"] for row in rows[:3]] == ["the fox", "write a happy cat", "ten dog"]
    assert {"adjusted", "advantage"}.isdisjoint(rows[0])
    assert all(math.isfinite(row["reward"]) and row["reward"] == row["rewards/graded"] for row in rows)
    assert all(0 <= row["kl"] < 1e-12 for row in rows[:3]) and rows[3]["kl"] > 1e-6


def test_a_run_leaves_one_parquet_file_a_set_and_the_same_bytes_each_time(policy_folder, tmp_path):
    for name in ("first", "second"):
        train(grpo(policy_folder), tmp_path / name, 3, CompletionFiles(), validate_every=2)
    assert contents(tmp_path / "first").keys() == {"train-000000.parquet", "held_out-000000.parquet"}
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_held_out_sets_have_files_of_their_own(policy_folder, tmp_path):
    data = named_sets(tmp_path / "data")
    train(grpo(policy_folder), tmp_path, 1, CompletionFiles(), validate_every=1, data=data)
    for name, prompts in SETS.items():
        assert [row["prompt"] for row in table(tmp_path, "held_out", name)] == 2 * prompts
        assert f"{name}-000000.parquet" in contents(tmp_path)


def test_kl_that_is_not_known_is_empty_and_not_0(policy_folder, tmp_path):
    train(grpo(policy_folder, loss=GRPOLoss()), tmp_path, 1, CompletionFiles())
    assert {row["kl"] for row in table(tmp_path)} == {None}


class Odd(GRPOModule):
    """Samples texts that no tokenizer here knows."""

    def sample(self, *arguments, **options):
        rollout = super().sample(*arguments, **options)
        texts = list(NASTY.values())
        return replace(rollout, texts=[texts[i % len(texts)] for i in range(len(rollout.texts))])


def test_texts_come_back_as_they_were_but_for_half_characters(policy_folder, tmp_path):
    module = grpo(policy_folder, RewardFunction(half_scored))
    module.__class__ = Odd
    train(module, tmp_path, 1, CompletionFiles(), validate_every=1)
    assert {row["completion"] for row in table(tmp_path)} == set(WRITTEN.values())
    assert [row["completion"] for row in table(tmp_path, "held_out")][:2] == list(WRITTEN.values())[:2]


def test_equal_prompts_have_one_id_and_conversations_differ_by_all_that_a_model_reads():
    def conversation(text, tools=None):
        return Conversation([{"role": "user", "content": text}], tools)

    ids = [prompt_id(each) for each in ("a", "b", conversation("a"), conversation("a", [{"name": "f"}]), "\ud800")]
    assert len(set(ids)) == 5 and ids[2] == prompt_id(conversation("a"))


class KillAfter(L.Callback):
    """Keeps what a process that dies after so many steps would leave: nothing is closed."""

    def __init__(self, step, folder, copy):
        self.step, self.folder, self.copy = step, folder, copy

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.step:
            shutil.copytree(self.folder, self.copy)


def test_a_killed_run_has_its_last_step_and_one_that_goes_on_is_the_run_that_was_not(policy_folder, tmp_path):
    every = {"validate_every": 2, "checkpoint_every": 3, "max_epochs": -1}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    copying = KillAfter(4, straight, killed)
    train(grpo(policy_folder), straight, 6, CompletionFiles(), copying, **every)

    assert steps(table(killed)) == [0, 1, 2, 3, 4] and steps(table(killed, "held_out")) == [0, 2, 4]
    assert not list((killed / COMPLETIONS_FOLDER).glob("*.parquet"))
    (stream,) = (killed / COMPLETIONS_FOLDER).glob("_train*")
    whole = stream.read_bytes()
    stream.write_bytes(whole[:-100])
    assert steps(table(killed)) == [0, 1, 2, 3]
    stream.write_bytes(whole[:20])
    assert table(killed) == []
    stream.write_bytes(whole[:-100])
    (killed / COMPLETIONS_FOLDER / "train-000000.parquet.7.tmp").write_bytes(b"half")

    last = killed / "checkpoints" / "last.ckpt"
    train(grpo(policy_folder), killed, 6, CompletionFiles(), ckpt_path=last, **every)
    assert contents(killed) == contents(straight)


def test_superseded_steps_are_dropped(policy_folder, tmp_path):
    every = {"validate_every": 2, "checkpoint_every": 2, "max_epochs": -1}
    train(grpo(policy_folder), tmp_path, 6, CompletionFiles(), **every)
    first = {(row["step"], row["row"], row["member"]): row["completion"] for row in table(tmp_path)}
    of_step_2 = tmp_path / "checkpoints" / "step=2.ckpt"
    train(grpo(policy_folder), tmp_path, 3, CompletionFiles(), ckpt_path=of_step_2, **every)
    rows = table(tmp_path)
    again = {(row["step"], row["row"], row["member"]): row["completion"] for row in rows}
    assert steps(rows) == [0, 1, 2] and len(again) == len(rows) == 3 * 3 * 4
    assert again.items() <= first.items()
    assert steps(table(tmp_path, "held_out")) == [0, 2]

    train(grpo(policy_folder), tmp_path, 2, CompletionFiles(), ckpt_path=of_step_2, **every)
    assert steps(table(tmp_path)) == [0, 1] and steps(table(tmp_path, "held_out")) == [0, 2]


def test_a_run_that_begins_anew_keeps_nothing_of_the_old_one(policy_folder, tmp_path):
    train(grpo(policy_folder), tmp_path, 4, CompletionFiles(), validate_every=2)
    train(grpo(policy_folder, seed=2), tmp_path, 1, CompletionFiles(), validate_every=1)
    train(grpo(policy_folder, seed=2), tmp_path / "fresh", 1, CompletionFiles(), validate_every=1)
    assert contents(tmp_path) == contents(tmp_path / "fresh")


def test_a_damaged_file_is_named_before_a_run_goes_on(policy_folder, tmp_path):
    train(grpo(policy_folder), tmp_path, 2, CompletionFiles(), checkpoint_every=1)
    (tmp_path / COMPLETIONS_FOLDER / "train-000000.parquet").write_bytes(b"no such thing")
    with pytest.raises(UserError, match=r"train-000000\.parquet: cannot be read as completions .*remove it"):
        last = tmp_path / "checkpoints" / "last.ckpt"
        train(grpo(policy_folder), tmp_path, 3, CompletionFiles(), ckpt_path=last, max_epochs=-1)


class Long(GRPOModule):
    """Samples texts that fill a disk."""

    def sample(self, *arguments, **options):
        rollout = super().sample(*arguments, **options)
        return replace(rollout, texts=[random.Random(i).randbytes(1000).hex() for i in range(len(rollout.texts))])


@pytest.mark.filterwarnings("ignore:completions")
def test_the_size_is_bounded_by_keeping_the_same_share_of_prompts_at_all_steps(policy_folder, tmp_path):
    module, status = grpo(policy_folder), RunStatus(tmp_path, 1)
    module.__class__ = Long
    recorded = train(module, tmp_path, 5, CompletionFiles(0.05), status)

    assert sum(map(len, contents(tmp_path).values())) <= 50_000
    said = status.content["warnings"]
    assert said[0] == (
        "completions: their files passed completions.max_megabytes 0.05 at step 1; of the training completions, those "
        "of one prompt in 2 are kept, whatever the step. Raise it to keep more"
    )
    share = 2 ** len(said)
    prompts = [output.rollout.prompts.texts for output in recorded.outputs]
    sampled = {(step, prompt) for step, of_step in enumerate(prompts) for prompt in of_step}
    kept = {(row["step"], row["prompt"]) for row in table(tmp_path)}
    assert kept == {(step, prompt) for step, prompt in sampled if int(prompt_id(prompt), 16) < 2**64 // share}
    assert 0 < len(kept) < len(sampled) and len(table(tmp_path)) == 4 * len(kept)


def test_no_megabytes_keep_nothing_and_fewer_are_refused(policy_folder, tmp_path):
    train(grpo(policy_folder), tmp_path, 1, CompletionFiles(0), validate_every=1)
    assert not (tmp_path / COMPLETIONS_FOLDER).exists()
    for wrong in (-1, math.nan):
        with pytest.raises(UserError, match=r"completions\.max_megabytes: got .*, expected at least 0"):
            CompletionFiles(wrong)


def test_modules_that_sample_nothing_leave_no_folder(policy_folder, reward_folder, tmp_path):
    fit("sft", KINDS["sft"](policy_folder, reward_folder), tmp_path, 2, CompletionFiles())
    assert not (tmp_path / COMPLETIONS_FOLDER).exists()


ENVIRONMENT = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")


def train_as_a_rank(rank, folder, policy):
    os.environ |= dict(zip(ENVIRONMENT, (str(rank), "0", "2"), strict=True))
    try:
        run = trainer(Path(folder), 2, CompletionFiles(), validate_every=1, devices=2, strategy="ddp")
        with warnings.catch_warnings(), quiet():
            run.fit(grpo(policy), prompt_data(Path(folder) / f"data_{rank}", validation=True, prompts_per_step=4))
    finally:
        for name in ENVIRONMENT:
            os.environ.pop(name, None)


def test_the_rows_of_all_ranks_are_there_once_in_the_order_of_one(policy_folder, tmp_path):
    run_in_two_processes(train_as_a_rank, tmp_path / "two", str(policy_folder))
    data = prompt_data(tmp_path / "one" / "data", validation=True, prompts_per_step=4)
    train(grpo(policy_folder), tmp_path / "one", 2, CompletionFiles(), validate_every=1, data=data)
    for split in ("train", "held_out"):
        one, two = (table(tmp_path / name, split) for name in ("one", "two"))
        assert len(one) == {"train": 2 * 4 * 4, "held_out": 3 * 3}[split]
        assert [row["completion"] for row in two] == [row["completion"] for row in one]
        for name in ("step", "row", "member", "reward"):
            assert [row[name] for row in two] == [row[name] for row in one]
        assert [row["logprob"] for row in two] == pytest.approx([row["logprob"] for row in one], rel=1e-4)
