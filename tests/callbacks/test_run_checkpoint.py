"""Which checkpoints a run leaves, and that `last.ckpt` leads to a whole one at every moment."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from modules.grpo_runs import grpo, identical, prompt_data, train, trainer

from grpovi_lightning.callbacks import RunCheckpoint
from grpovi_lightning.models.checkpoint_folder import in_memory, read_checkpoint, remove_checkpoint, write_folder
from grpovi_lightning.study.process import usable_checkpoint

KEPT = {"newest": {"save_top_k": 1}, "all": {"save_top_k": -1}, "none": {"save_top_k": 0}}
KEPT |= {"best": {"save_top_k": 1, "monitor": "reward", "mode": "max"}}
KEPT |= {"worst": {"save_top_k": 1, "monitor": "reward", "mode": "min"}}
KEPT |= {"under one name": {"filename": "newest"}}


def saving(folder, **settings):
    defaults = {"filename": "{step}", "every_n_train_steps": 1, "save_last": "link", "enable_version_counter": False}
    return RunCheckpoint(dirpath=folder / "checkpoints", **defaults | {"save_top_k": 1} | settings)


def run(policy_folder, folder, steps, ckpt_path=None, **settings):
    checkpoints = saving(folder, **settings)
    return train(
        grpo(policy_folder), folder, steps, checkpoints, ckpt_path=ckpt_path, max_epochs=-1, enable_checkpointing=True
    )


def names(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


def step_of(path):
    return in_memory(read_checkpoint(path))["global_step"]


@pytest.fixture(scope="module")
def straight(policy_folder, tmp_path_factory):
    """Four steps that save the newest checkpoint."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, run(policy_folder, folder, 4)


def test_the_newest_checkpoint_is_kept_once_and_last_is_a_link_to_it(straight):
    folder, _ = straight
    assert names(folder) == {"step=4.ckpt", "last.ckpt"}
    assert os.readlink(folder / "checkpoints" / "last.ckpt") == "step=4.ckpt"
    assert step_of(usable_checkpoint(folder)) == 4


def save_folders(monkeypatch):
    """Has one process write its checkpoints as the processes of `fsdp2` do with `save_distributed_checkpoint`."""

    def save_checkpoint(self, checkpoint, filepath, storage_options=None):
        weights = {n: v for n, v in checkpoint["state_dict"].items() if n.startswith("policy.")}
        taken = {name: torch.empty_like(value, device="meta") for name, value in weights.items()}
        rest = checkpoint | {"state_dict": checkpoint["state_dict"] | taken}
        write_folder(Path(filepath), rest, {f"['state_dict']['{n}']": v for n, v in weights.items()})

    monkeypatch.setattr(SingleDeviceStrategy, "save_checkpoint", save_checkpoint)
    monkeypatch.setattr(SingleDeviceStrategy, "remove_checkpoint", lambda self, path: remove_checkpoint(Path(path)))
    monkeypatch.setattr(SingleDeviceStrategy, "_save_distributed_checkpoint", True, raising=False)


@pytest.mark.parametrize("folders", [False, True], ids=["files", "folders"])
@pytest.mark.parametrize("kept", KEPT)
def test_whenever_the_process_dies_last_leads_to_a_whole_checkpoint(
    policy_folder, tmp_path, monkeypatch, kept, folders
):
    """Every call that changes the folder is followed by the question what a process killed now would leave."""
    if folders:
        save_folders(monkeypatch)
    last = tmp_path / "checkpoints" / "last.ckpt"
    seen, led = [], []

    def watched(module, name):
        change = getattr(module, name)

        def then_look(*arguments, **options):
            result = change(*arguments, **options)
            found = usable_checkpoint(tmp_path)
            if found or seen:
                seen.append(step_of(found))
                led.append(found == last)
            return result

        monkeypatch.setattr(module, name, then_look)

    for module, name in (*((os, n) for n in ("rename", "replace", "remove", "unlink", "symlink")), (shutil, "move")):
        watched(module, name)
    run(policy_folder, tmp_path, 4, **KEPT[kept])
    monkeypatch.undo()

    assert seen == sorted(seen) and set(seen) == {1, 2, 3, 4}
    assert led == sorted(led) and led[-1]  # once there, it always leads to one
    named = names(tmp_path) - {"last.ckpt"}
    count = {"newest": 1, "all": 4, "none": 0, "best": 1, "worst": 1, "under one name": 1}[kept]
    only_last = folders and last.resolve().name in ("last.1.ckpt", "last.2.ckpt")  # what is not among the best
    assert len(named) == count + only_last
    assert all((tmp_path / "checkpoints" / name).is_dir() == folders for name in named)


@pytest.mark.parametrize("before", ["file", "folder"])
@pytest.mark.parametrize("after", ["file", "folder"])
def test_a_checkpoint_of_either_kind_goes_on_and_is_replaced_by_one_of_either_kind(
    policy_folder, tmp_path, monkeypatch, straight, before, after
):
    with pytest.MonkeyPatch.context() as first:
        if before == "folder":
            save_folders(first)
        run(policy_folder, tmp_path, 2, filename="newest")
    if after == "folder":
        save_folders(monkeypatch)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.is_dir() == (before == "folder")
    resumed = run(policy_folder, tmp_path, 4, ckpt_path=last, filename="newest")
    assert names(tmp_path) == {"newest.ckpt", "last.ckpt"} and step_of(last) == 4
    assert last.is_dir() == (after == "folder")
    assert identical(resumed.weights[-1], straight[1].weights[-1])


@pytest.mark.parametrize("save_last", [True, "link"])
def test_a_file_takes_the_place_of_a_folder_and_either_is_evaluated_alike(
    policy_folder, tmp_path, monkeypatch, save_last
):
    with pytest.MonkeyPatch.context() as first:
        save_folders(first)
        run(policy_folder, tmp_path, 2, filename="newest", save_last=save_last)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.is_dir() and step_of(last) == 2
    copied = shutil.copytree(last, tmp_path / "copied.ckpt")
    run(policy_folder, tmp_path, 3, ckpt_path=last, filename="newest", save_last=save_last)
    assert last.is_file() and step_of(last) == 3

    def evaluated(checkpoint):
        data = prompt_data(tmp_path / "data", validation=True)
        return trainer(tmp_path / "evaluated", 1, logger=False).validate(
            grpo(policy_folder), data, ckpt_path=checkpoint, weights_only=True
        )[0]

    again = tmp_path / "again"
    run(policy_folder, again, 2)
    assert evaluated(copied) == evaluated(again / "checkpoints" / "last.ckpt")


def test_a_run_that_was_moved_goes_on_to_the_same_bits_and_removes_what_it_had(policy_folder, tmp_path, straight):
    run(policy_folder, tmp_path / "before", 2)
    (tmp_path / "before").rename(tmp_path / "moved")
    last = tmp_path / "moved" / "checkpoints" / "last.ckpt"

    resumed = run(policy_folder, tmp_path / "moved", 4, ckpt_path=last)

    assert names(tmp_path / "moved") == {"step=4.ckpt", "last.ckpt"} and step_of(last) == 4
    assert identical(resumed.weights[-1], straight[1].weights[-1])


def test_steps_that_are_made_again_replace_their_checkpoints(policy_folder, tmp_path):
    run(policy_folder, tmp_path, 4, save_top_k=-1)
    run(policy_folder, tmp_path, 3, ckpt_path=tmp_path / "checkpoints" / "step=1.ckpt", save_top_k=-1)
    assert names(tmp_path) == {*(f"step={step}.ckpt" for step in (1, 2, 3, 4)), "last.ckpt"}
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 3


def test_a_run_that_starts_from_another_one_s_checkpoint_leaves_that_alone(policy_folder, tmp_path):
    run(policy_folder, tmp_path / "first", 1)
    with pytest.warns(UserWarning, match="dirpath has changed"):
        run(policy_folder, tmp_path / "second", 3, ckpt_path=tmp_path / "first" / "checkpoints" / "last.ckpt")
    assert names(tmp_path / "first") == {"step=1.ckpt", "last.ckpt"}
    assert names(tmp_path / "second") == {"step=3.ckpt", "last.ckpt"}


def test_a_run_shorter_than_the_interval_is_saved_at_its_end(policy_folder, tmp_path):
    run(policy_folder, tmp_path, 2, every_n_train_steps=5)
    assert step_of(usable_checkpoint(tmp_path)) == 2


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder of a sharded one"])
def test_a_last_checkpoint_that_an_older_version_wrote_is_replaced(policy_folder, tmp_path, folder):
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.mkdir() if folder else last.write_bytes(b"older")
    run(policy_folder, tmp_path, 1)
    assert last.is_symlink() and step_of(last) == 1


def test_a_link_to_nothing_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to("step=1.ckpt")
    assert usable_checkpoint(tmp_path) is None
